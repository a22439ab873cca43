"""The model families that edgelm reads: one row each."""

from __future__ import annotations

from edgelm.errors import CheckpointError
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.llama import LLAMA
from edgelm_export.architectures.mistral import MISTRAL
from edgelm_export.architectures.qwen2 import QWEN2
from edgelm_export.architectures.qwen3 import QWEN3

ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,  # Llama 1 to 3, SmolLM2, TinyLlama
    "mistral": MISTRAL,
    "qwen2": QWEN2,  # and Qwen2.5
    "qwen3": QWEN3,
}


def architecture_of(model_type: object, where: object) -> Architecture:
    """Find the row of a Hugging Face model_type.

    Raises:
        CheckpointError: there is none; the message lists those that there are.
    """
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        listed = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(f"{where}: model_type {model_type!r} is not supported; supported: {listed}.")
    return ARCHITECTURES[model_type]


def gguf_architecture_of(name: object, where: object) -> Architecture:
    """Find the row of a GGUF file's general.architecture.

    Raises:
        CheckpointError: there is none; the message lists those that there are.
    """
    for architecture in ARCHITECTURES.values():
        if architecture.gguf_architecture == name:
            return architecture
    listed = ", ".join(sorted({architecture.gguf_architecture for architecture in ARCHITECTURES.values()}))
    raise CheckpointError(f"{where}: the GGUF architecture {name!r} is not supported; supported: {listed}.")

"""The model families that edgelm reads: one row each."""

from __future__ import annotations

from edgelm.errors import CheckpointError
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.llama import LLAMA

ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,  # Llama 1 to 3, SmolLM2, TinyLlama
}


def architecture_of(model_type: object, where: object) -> Architecture:
    """Find the row of a Hugging Face model_type.

    Raises:
        CheckpointError: there is none; the message lists those that there are.
    """
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise CheckpointError(f"{where}: model_type {model_type!r} is not supported; supported: {_listed()}.")
    return ARCHITECTURES[model_type]


def gguf_architecture_of(name: object, where: object) -> Architecture:
    """Find the row of a GGUF file's general.architecture.

    Raises:
        CheckpointError: there is none; the message lists those that there are.
    """
    for architecture in ARCHITECTURES.values():
        if architecture.gguf_architecture == name:
            return architecture
    raise CheckpointError(f"{where}: the GGUF architecture {name!r} is not supported; supported: {_listed()}.")


def _listed() -> str:
    return ", ".join(sorted(ARCHITECTURES))

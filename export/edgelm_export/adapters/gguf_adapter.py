"""LoRA adapters in GGUF files, as llama.cpp's convert_lora_to_gguf.py writes them.

A layer has the name that its weight has in a model's file, and the order of rows there. Shapes: R rank, D and N what a
projection takes and gives: A is [R, D], B is [N, R].
Source: convert_lora_to_gguf.py and src/llama-adapter.cpp of llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.architecture.multipliers import Multipliers
from edgelm.arguments import is_number
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm.number_bounds import FLOAT32_END
from edgelm.package.peft_format import MERGE_WHERE_TRAINED
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gguf_header import layout_of
from edgelm_export.checkpoints.tensor_map import TensorLayout
from edgelm_export.gguf.file import GGUFFile
from edgelm_export.packed.gguf_types import dequantize
from edgelm_export.reference.weights import Array

_TYPE, _ARCHITECTURE, _KIND, _ALPHA = "general.type", "general.architecture", "adapter.type", "adapter.lora.alpha"
_WAKING_TOKENS = "adapter.alora.invocation_tokens"  # behind which alone an activated LoRA is on
_A, _B = ".weight.lora_a", ".weight.lora_b"
_DTYPES = ("F32", "F16", "BF16", "Q8_0")  # what the converter writes; of others one byte may hold 32 weights
_BLOCK = re.compile(r"^blk\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class GGUFAdapter:
    """An adapter as it stands in a file.

    architecture: what llama.cpp calls the family of its base. alpha: over the rank, what products are multiplied by.
    matrices: A and B of each layer, float32.
    """

    path: Path
    architecture: str
    alpha: float
    matrices: Mapping[str, tuple[Array, Array]]


def read_gguf_adapter(path: Path) -> GGUFAdapter:
    """Read an adapter from a GGUF file.

    Raises:
        CheckpointError: the file is broken, holds no plain LoRA, or a matrix lacks its partner.
    """
    with GGUFFile.open(path) as file:
        architecture, alpha = _checked(path, file.metadata)
        layers = [name.removesuffix(_A) for name in file.tensors if name.endswith(_A)]
        strange = sorted(file.tensors.keys() ^ {layer + end for layer in layers for end in (_A, _B)})
        strange += [
            name
            for name, tensor in file.tensors.items()
            if name not in strange and (len(tensor.shape) != 2 or tensor.type not in _DTYPES)
        ]
        if strange or not layers:
            more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
            raise CheckpointError(
                f"{path} is no plain LoRA adapter; without a partner, or no matrix in {', '.join(_DTYPES)}: "
                f"{', '.join(strange[:5]) or 'all of it'}{more}. Give the folder that it was converted from, or put it "
                "into its base with llama-export-lora of llama.cpp, and export the model that comes of it."
            )
        tensors = {
            name: dequantize(file.data(name), tensor.type, tensor.shape) for name, tensor in file.tensors.items()
        }
    pairs = {layer: (tensors[layer + _A], tensors[layer + _B]) for layer in layers}
    return GGUFAdapter(path=path, architecture=architecture, alpha=alpha, matrices=pairs)


def _checked(path: Path, metadata: Mapping[str, Any]) -> tuple[str, float]:
    """Return what llama.cpp calls the base's family, and alpha."""
    for key, wanted in ((_TYPE, "adapter"), (_KIND, "lora"), (_WAKING_TOKENS, None)):
        value = metadata.get(key)
        if value != wanted:
            raise CheckpointError(
                f"{path} has {key} = {value!r:.60}; only plain LoRA adapters are read, "
                f"{f'with {wanted!r} there' if wanted else 'which are on from the first token'}."
            )
    architecture, alpha = metadata.get(_ARCHITECTURE), metadata.get(_ALPHA)
    if not isinstance(architecture, str):
        raise CheckpointError(f"{path}: {_ARCHITECTURE} is {architecture!r:.60}; it must be a text.")
    # Of none, and of 0, llama.cpp makes the factor 1, and PEFT none and 0.
    if not is_number(alpha) or not 0 < abs(alpha) < FLOAT32_END:
        raise CheckpointError(f"{path}: {_ALPHA} is {alpha!r:.60}; it must be a number but 0 that float32 holds.")
    return architecture, float(alpha)


def layout_of_gguf(adapter: GGUFAdapter, config: ModelConfig) -> TensorLayout:
    """Return the layout of a model's GGUF file, by which an adapter for it names its layers.

    Raises:
        CheckpointError: llama.cpp knows the model by another name than that in the adapter, or by none; or its weights
            are multiplied there and not here.
    """
    row = ARCHITECTURES.get(config.model_type)
    family = row.gguf if row is not None else None
    names = (family.architecture, *family.also_called) if family is not None else ()
    if family is None or adapter.architecture not in names:
        raise CheckpointError(
            f"{adapter.path} is for a model that llama.cpp calls {adapter.architecture!r:.60}; the package is a "
            f"{config.model_type}, {_called(names)}. Name the package that it was trained for, or give the folder "
            f"that the file was converted from. If it is that one, {MERGE_WHERE_TRAINED}"
        )
    if family.has_multiplied_weights and config.multipliers != Multipliers():
        raise CheckpointError(
            f"{adapter.path} is for a GGUF file, which has the multipliers of a {config.model_type}'s projections in "
            "its weights, and so has the adapter; the package has them beside. Export a package of the GGUF file, or "
            "give the folder that the adapter was converted from."
        )
    shapes = {_BLOCK.sub("blk.0.", f"{layer}.weight"): () for layer in adapter.matrices}
    return layout_of(family, GGUFHeader(metadata={}, shapes=shapes, rope_factors={}))


def _called(names: Iterable[str]) -> str:
    return f"which it calls {' or '.join(map(repr, names))}" if names else "whose GGUF files edgelm does not know"

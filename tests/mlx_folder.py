"""Folders as mlx-lm's converter writes them, packed here by numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from json_files import change_json
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Tensors = dict[str, NDArray[Any]]


def words(integers: NDArray[np.integer], bits: int) -> NDArray[np.uint32]:
    """Pack the integers of each row one after the other, each from its lowest bit on."""
    every_bit = (integers[..., None] >> np.arange(bits)) & 1
    in_rows = every_bit.reshape(*integers.shape[:-1], -1).astype(np.uint8)
    return np.packbits(in_rows, axis=-1, bitorder="little").view("<u4")


def packed(weight: NDArray[np.float32], bits: int, group_size: int) -> tuple[Tensors, NDArray[np.float32]]:
    """Return a module's tensors without its name, and what they stand for: a group begins at its least weight."""
    groups = weight.astype(np.float32).reshape(*weight.shape[:-1], -1, group_size)
    scales = ((groups.max(-1) - groups.min(-1)) / ((1 << bits) - 1)).astype(np.float16)
    biases = groups.min(-1).astype(np.float16)
    wide_scales, wide_biases = scales.astype(np.float32)[..., None], biases.astype(np.float32)[..., None]
    integers = np.clip(np.rint((groups - wide_biases) / wide_scales), 0, (1 << bits) - 1).astype(np.int64)
    tensors = {"weight": words(integers.reshape(weight.shape), bits), "scales": scales, "biases": biases}
    return tensors, (integers * wide_scales + wide_biases).reshape(weight.shape).astype(np.float32)


def pack_folder(
    folder: Path, settings: Mapping[str, Any], bits_of: Callable[[str], int] | None = None, group_size: int = 32
) -> dict[str, NDArray[np.float32]]:
    """Pack the matrices of a saved model, the embedding too; return what each stands for.

    bits_of: a tensor's name -> its bits; 0 leaves it as it is. By default all have those of the settings.
    """
    tensors: Tensors = {}
    stands_for = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        is_matrix = (
            tensor.ndim > 1 and name.endswith(".weight") and not name.endswith((".conv.weight", ".conv1d.weight"))
        )
        bits = 0 if not is_matrix else bits_of(name) if bits_of else settings["bits"]
        if bits:
            parts, stands_for[name] = packed(tensor, bits, group_size)
            tensors |= {f"{name.removesuffix('weight')}{part}": array for part, array in parts.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    change_json(folder / "config.json", quantization=settings, quantization_config=settings)
    return stands_for

"""Folders of quantized checkpoints: their packed matrices and settings, and a tensor that is not as these say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from json_files import change_json
from safetensors.torch import load_file, save_file

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def pack_matrices(
    folder: Path, settings: dict[str, Any], pack: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
) -> Tensors:
    """Replace the matrices of a saved model's layers, and say by which settings; return what each stands for.

    pack: a module's name and its weight in float32 -> the tensors to save instead, and what they stand for.
    """
    tensors: Tensors = {}
    stands_for: Tensors = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if tensor.ndim == 2 and ".layers." in key:
            parts, stands_for[key] = pack(key.removesuffix(".weight"), tensor.float())
            tensors |= {name: part.contiguous() for name, part in parts.items()}
        else:
            tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    say_quantized(folder, settings)
    return stands_for


def pack_arrays(
    folder: Path, settings: dict[str, Any], pack: Callable[[str, np.ndarray], tuple[Arrays, np.ndarray]]
) -> Arrays:
    """Do the same with arrays of numpy."""

    def packed(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        parts, stands_for = pack(stem, weight.numpy())
        return {name: torch.from_numpy(part) for name, part in parts.items()}, torch.from_numpy(stands_for)

    return {name: weight.float().numpy() for name, weight in pack_matrices(folder, settings, packed).items()}


def say_quantized(folder: Path, settings: dict[str, Any]) -> None:
    """Put settings into the folder's config.json, as those of how its weights are quantized."""
    change_json(folder / "config.json", quantization_config=settings)


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Put in a tensor's place what `change` makes of it; None leaves it out."""
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

"""Folders of quantized checkpoints: what their settings say, and a tensor that is not as they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from json_files import change_json
from safetensors.torch import load_file, save_file


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

"""An adapter of the tiny model, written without training, for tests of what loads one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgelm.package.adapter import AdapterManifest
from edgelm.package.manifest import Manifest, describe_file
from edgelm.testing import tiny_model_path

PACKAGE = Manifest.load(tiny_model_path())
LAYER = "model.layers.0.self_attn.o_proj"


def write_tiny_adapter(
    folder: Path, shapes: tuple[tuple[int, ...], ...] = ((2, 32), (32, 2)), dtype: Any = "f4"
) -> Path:
    """Write an adapter named `mine`, all ones, and return its folder."""
    folder.mkdir(exist_ok=True)
    names = [f"base_model.model.{LAYER}.lora_{part}.weight" for part in "AB"]
    tensors = {name: np.ones(shape, dtype) for name, shape in zip(names, shapes, strict=True)}
    save_file(tensors, folder / "adapter_model.safetensors")
    describe(folder)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    """Write the manifest of what is in the folder."""
    manifest = AdapterManifest(
        name="mine",
        base=PACKAGE.name,
        base_fingerprint=PACKAGE.fingerprint,
        rank=2,
        alpha=4,
        target_modules=("o_proj",),
        file=describe_file(folder / "adapter_model.safetensors"),
        created_by={},
    )
    replace(manifest, **changes).save(folder)

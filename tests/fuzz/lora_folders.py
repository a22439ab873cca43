"""Folders of adapters as PEFT writes them: adapter_config.json, and adapter_model.safetensors with its metadata."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from fuzz.checkpoint_files import mutate_safetensors
from fuzz.mutations import mutate_json
from fuzz.target import tiny_package
from safetensors.numpy import save

from edgelm.package.manifest import Manifest
from edgelm.package.peft_format import BASE_GRID, BASE_NAME, BASE_SHA256, CONFIG_FILE, PREFIX, WEIGHTS_FILE
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_training.merge import merge_adapter

FOLDER = "folder"  # its settings in a line, then its safetensors file
_PACKAGE, _BASE, _ADAPTER, _MADE = "package", "base", "adapter", "made"
_SETTINGS = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4,
    "lora_dropout": 0.0, "target_modules": ["o_proj"], "bias": "none", "use_rslora": True, "modules_to_save": None,
    "init_lora_weights": True, "alpha_pattern": {"o_proj": 3}, "rank_pattern": {}, "use_dora": False,
}  # fmt: skip


def prepare(folder: Path) -> Sequence[bytes]:
    """Copy the tiny package, and its checkpoint; return adapters of PEFT's, and one that says more of its base."""
    from make_tiny_model import make_checkpoint

    make_checkpoint(folder / _BASE)
    for name in (_PACKAGE, _ADAPTER):
        (folder / name).mkdir(exist_ok=True)
    tiny_package(folder / _PACKAGE)
    layer = f"{PREFIX}model.layers.0.self_attn.o_proj"
    tensors = {f"{layer}.lora_{part}.weight": np.ones(shape, "f4") for part, shape in (("A", (2, 32)), ("B", (32, 2)))}
    settings = json.dumps(_SETTINGS).encode()
    package = Manifest.load(folder / _PACKAGE)
    known = {BASE_NAME: "base", BASE_GRID: "int4-block64", BASE_SHA256: package.source["files"][0]["sha256"]}
    return [settings + b"\n" + save(tensors, {"format": "pt", **more}) for more in ({}, {BASE_NAME: "base"}, known)]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change the settings, the weights, or both."""
    settings, _, weights = data.partition(b"\n")
    kind = random.random()
    if kind < 0.6:
        settings = mutate_json(settings, random).replace(b"\n", b" ")
    if kind > 0.5:
        weights = mutate_safetensors(weights, random, ())
    return settings + b"\n" + weights


def read(folder: Path) -> None:
    """Export an adapter for its base's package, and merge it into its base."""
    settings, _, weights = (folder / FOLDER).read_bytes().partition(b"\n")
    (folder / _ADAPTER / CONFIG_FILE).write_bytes(settings)
    (folder / _ADAPTER / WEIGHTS_FILE).write_bytes(weights)
    ways = (
        lambda: export_adapter(folder / _ADAPTER, folder / _PACKAGE, folder / _MADE),
        lambda: merge_adapter(folder / _ADAPTER, folder / _MADE, base=folder / _BASE),
    )
    for way in ways:
        try:
            way()
        finally:
            shutil.rmtree(folder / _MADE, ignore_errors=True)

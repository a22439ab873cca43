"""Adapters as mlx-lm writes them; those of PEFT with the same matrices are the oracle, exported and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_adapters import Exported
from safetensors.numpy import load_file, save_file

from edgelm.errors import CheckpointError
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_training.checkpoints.adapter import read_adapter

LAYERS = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.1.mlp.down_proj": (64, 32)}  # takes, gives
RANK, SCALE = 4, 20.0


def mlx_folder(folder: Path, **changed: Any) -> Path:
    """Write an adapter with the files and names of mlx-lm 0.31 (mlx_lm.lora)."""
    random = np.random.default_rng(0)
    tensors = {}
    for layer, (takes, gives) in LAYERS.items():
        tensors[f"{layer}.lora_a"] = random.normal(0, 0.1, (takes, RANK)).astype(np.float32)
        tensors[f"{layer}.lora_b"] = random.normal(0, 0.1, (RANK, gives)).astype(np.float32)
    settings = {"fine_tune_type": "lora", "model": "base", "num_layers": 2, "train": True}
    settings |= {"lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE}} | changed
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors", {"format": "mlx"})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def peft_twin(folder: Path, mlx: Path) -> Path:
    """Write what an adapter of mlx-lm says, as PEFT does: A and B turned around, and the scale as alpha / r."""
    tensors = {}
    for name, matrix in load_file(mlx / "adapters.safetensors").items():
        layer, end = name.rsplit(".", 1)
        part = {"lora_a": "A", "lora_b": "B"}[end]
        tensors[f"base_model.model.{layer}.lora_{part}.weight"] = np.ascontiguousarray(matrix.T)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_of_mlx_is_exported_as_its_twin_of_peft(exported: Exported, tmp_path: Path) -> None:
    mlx = mlx_folder(tmp_path / "mlx")
    folders = {"ours": mlx, "theirs": peft_twin(tmp_path / "peft", mlx)}
    manifests = [export_adapter(folder, exported.packages["fp32"], tmp_path / name) for name, folder in folders.items()]
    written = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in folders]
    assert written[0] == written[1]
    assert [(found.rank, found.alpha, found.target_modules) for found in manifests] == [
        (4, 80.0, ("down_proj", "q_proj"))
    ] * 2


def test_training_reads_an_adapter_of_mlx_as_its_twin_of_peft(tmp_path: Path) -> None:
    mlx = mlx_folder(tmp_path / "mlx")
    ours, theirs = read_adapter(mlx), read_adapter(peft_twin(tmp_path / "peft", mlx))
    assert ours.scales == theirs.scales == dict.fromkeys(LAYERS, SCALE)
    assert ours.base == theirs.base
    assert ours.matrices.keys() == theirs.matrices.keys() == LAYERS.keys()
    for layer, pair in ours.matrices.items():
        assert all(one.equal(other) for one, other in zip(pair, theirs.matrices[layer], strict=True))


def test_an_adapter_of_peft_has_its_own_scale_whatever_else_its_settings_say(tmp_path: Path) -> None:
    peft = peft_twin(tmp_path / "peft", mlx_folder(tmp_path / "mlx"))
    settings = json.loads((peft / "adapter_config.json").read_text())
    (peft / "adapter_config.json").write_text(json.dumps(settings | {"mlx_scale": 5.0}))
    (tmp_path / "mlx" / "adapters.safetensors").rename(peft / "adapters.safetensors")  # PEFT's file comes first
    assert read_adapter(peft).scales == dict.fromkeys(LAYERS, SCALE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"fine_tune_type": "dora"},
            r"fine_tune_type = 'dora'; .*: mlx_lm.fuse --model BASE --adapter-path .*mlx --save",
        ),
        ({"fine_tune_type": "full"}, r"fine_tune_type = 'full'"),
        ({"lora_parameters": None}, r"lora_parameters = None; an adapter of mlx-lm \(adapters.safetensors\) has a"),
        ({"lora_parameters": {"rank": 4, "scale": float("inf")}}, r"'scale': inf"),
        ({"lora_parameters": {"rank": 0, "scale": 1}}, r"'rank': 0"),
        (
            {"lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0}},
            r'has "alpha": 16 in lora_parameters: older versions .* put it into the "scale" \(10\)',
        ),
        ({"model": 5}, r"base_model_name_or_path = 5"),
    ],
)
def test_what_is_no_plain_lora_of_mlx_is_refused(
    exported: Exported, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    mlx = mlx_folder(tmp_path / "mlx", **changed)
    with pytest.raises(CheckpointError, match=message):
        export_adapter(mlx, exported.packages["fp32"], tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        read_adapter(mlx)

"""Folders that mlx-lm quantized to floats of 4 and 8 bits: MXFP4, NVFP4 and MXFP8."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_files import change_json
from mlx_folder import words
from safetensors.numpy import load_file, save_file

from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.packed.mlx_format import MLXMatrix
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveModel = Callable[..., Any]
MATRIX = "model.layers.0.mlp.down_proj.weight"


def matrix(bits: int, group_size: int, shape: tuple[int, int], mode: str) -> MLXMatrix:
    return MLXMatrix(stem="m", mode=mode, bits=bits, group_size=group_size, shape=shape)


def test_what_mlx_packed_as_mxfp4_is_what_mlx_reads() -> None:
    """32 normal numbers in bfloat16, by mx.quantize of mlx 0.32.4 on Linux with mode="mxfp4"."""
    stored = np.array([[0x50CAC910, 0x30C012AA, 0x1D9EDEAD, 0xAD00AF91]], np.uint32)
    tensors = {"m.weight": stored, "m.scales": np.array([[126]], np.uint8)}
    wanted = [
        0, 0.25, -0.25, -1, -0.5, -1, 0, 1.5, -0.5, -0.5, 0.5, 0.25, 0, -1, 0, 0.75, -1.5, -0.5, -2, -1.5, -2, -0.25,
        -1.5, 0.25, 0.25, -0.25, -3, -0.5, 0, 0, -1.5, -0.5,
    ]  # fmt: skip
    np.testing.assert_array_equal(matrix(4, 32, (1, 32), "mxfp4").weight(tensors.__getitem__)[0], wanted)


# 32 quarters from -4 on, the second half times 0.13, by mx.quantize: mode, bits, group size, words, scales, and what
# mx.dequantize makes of them in float32.
OTHER_MODES = [
    (
        "nvfp4", 4, 16, [3740200959, 2578173149, 1413685776, 2004248165], [51, 26],
        [-4.125, -4.125, -4.125, -2.75, -2.75, -2.75, -2.75, -2.0625, -2.0625, -2.0625, -1.375, -1.375, -1.03125,
         -0.6875, -0.34375, -0.34375, 0, 0.0390625, 0.078125, 0.078125, 0.1171875, 0.15625, 0.15625, 0.234375, 0.234375,
         0.3125, 0.3125, 0.3125, 0.3125, 0.46875, 0.46875, 0.46875],
    ),
    (
        "mxfp8", 8, 32,
        [4126603256, 4059231220, 3941396208, 3638617320, 1279803392, 1465143888, 1532647768, 1616862812], [121],
        [-4, -3.75, -3.5, -3.25, -3, -2.75, -2.5, -2.25, -2, -1.75, -1.5, -1.25, -1, -0.75, -0.5, -0.25, 0, 0.03125,
         0.0625, 0.09375, 0.125, 0.15625, 0.1875, 0.234375, 0.25, 0.28125, 0.3125, 0.34375, 0.375, 0.4375, 0.46875,
         0.5],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "bits", "group_size", "stored", "scales", "wanted"), OTHER_MODES)
def test_what_mlx_packed_as_floats_is_what_mlx_reads(
    mode: str, bits: int, group_size: int, stored: list[int], scales: list[int], wanted: list[float]
) -> None:
    tensors = {"m.weight": np.array([stored], np.uint32), "m.scales": np.array([scales], np.uint8)}
    packed = matrix(bits, group_size, (1, 32), mode)
    np.testing.assert_array_equal(packed.weight(tensors.__getitem__)[0], wanted)
    blocks = packed.blocks(tensors.__getitem__)
    assert (blocks is None) == (mode == "mxfp8")
    if blocks is not None:
        np.testing.assert_array_equal((blocks.values * blocks.scales[..., None]).reshape(-1), wanted)


@pytest.mark.parametrize("mode", ["nvfp4", "mxfp8"])
def test_folders_of_floats_are_read_and_kept(save_llama: SaveModel, tmp_path: Path, mode: str) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    path, random = tmp_path / "source/model.safetensors", np.random.default_rng(1)
    tensors, bits, size = {}, int(mode[-1]), 16 if mode == "nvfp4" else 32
    for name, tensor in load_file(path).items():
        if tensor.ndim != 2:
            tensors[name] = tensor
            continue
        N, K = tensor.shape
        integers = random.integers(0, 1 << bits, (N, K))
        integers[integers % 128 == 127] = 0  # E4M3 has numbers that are none
        scale = 16 if mode == "nvfp4" else 116
        tensors[name] = words(integers, bits)
        tensors[f"{name.removesuffix('weight')}scales"] = np.full((N, K // size), scale, np.uint8)
    save_file(tensors, path, metadata={"format": "mlx"})
    change_json(tmp_path / "source/config.json", quantization={"mode": mode, "bits": bits, "group_size": size})
    checkpoint = HuggingFaceCheckpoint(tmp_path / "source")
    assert checkpoint.stored_type(MATRIX) == mode.upper()
    manifest = export_package(checkpoint, tmp_path / "package", "keep")
    is_kept = manifest.notes[0].startswith("Every matrix keeps the grid of its source")
    assert is_kept if mode == "nvfp4" else manifest.notes[0].endswith("no fast operator has their grids: MXFP8.")
    import_checkpoint(tmp_path / "source", tmp_path / "ours")
    imported = HuggingFaceCheckpoint(tmp_path / "ours")
    assert imported.stored_type(MATRIX) == ("F32" if mode == "nvfp4" else "BF16")
    np.testing.assert_array_equal(imported.tensor(MATRIX), checkpoint.tensor(MATRIX))


def test_mxfp4_is_kept_exactly_in_8_bits() -> None:
    random = np.random.default_rng(0)
    integers = random.integers(0, 16, (3, 64))
    exponents = random.integers(120, 130, (3, 2)).astype(np.uint8)
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])[integers & 7] * np.where(integers & 8, -1, 1)
    wanted = values * np.exp2(exponents.astype(float) - 127).repeat(32, axis=1)
    tensors = {"m.weight": words(integers, 4), "m.scales": exponents}
    stored = matrix(4, 32, (3, 64), "mxfp4")
    np.testing.assert_array_equal(stored.weight(tensors.__getitem__), wanted)
    blocks = stored.blocks(tensors.__getitem__)
    assert (blocks.bits, blocks.zero_points, stored.type) == (8, None, "MXFP4")
    np.testing.assert_array_equal((blocks.values * blocks.scales[..., None]).reshape(3, 64), wanted)

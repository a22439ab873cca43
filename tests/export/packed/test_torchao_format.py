"""Folders that torchao quantized and saved as safetensors, written here with the parts that it saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_folders import Tensors, change_tensor, pack_matrices, say_quantized

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

STEM = "model.layers.0.mlp.up_proj"
INT4 = {"weight_dtype": {"_type": "torch.dtype", "_data": "int4"}}
# A name -> its class of settings and what that says, and the bits of integers in groups of so many; 0: of floats.
FORMATS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "int8": ("Int8WeightOnlyConfig", {}, 8, 0),
    "intx": ("Int8DynamicActivationIntxWeightConfig", INT4, 4, 32),
    "float8": ("Float8WeightOnlyConfig", {}, 0, 0),
}


def quantize_folder(folder: Path, name: str) -> Tensors:
    type_, data, bits, group = FORMATS[name]

    def pack(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        blocks = weight.unflatten(1, (-1, group or weight.shape[1]))
        scales = blocks.abs().amax(2) / ((1 << bits - 1) - 2 if bits else 448)
        steps = blocks / scales[..., None]
        values = (steps.round() + 1).to(torch.int8) if bits else steps.to(torch.float8_e4m3fn)
        parts = {f"{stem}._weight_qdata": values.flatten(1), f"{stem}._weight_scale": scales}
        if bits:
            parts[f"{stem}._weight_zero_point"] = torch.ones(scales.shape, dtype=torch.int8)
        return parts, ((values.float() - (1 if bits else 0)) * scales[..., None]).flatten(1)

    settings = {"quant_method": "torchao", "quant_type": {"default": {"_type": type_, "_version": 2, "_data": data}}}
    return pack_matrices(folder, settings, pack)


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_is_read_as_what_it_stands_for_and_integers_are_kept(
    save_llama: Any, tmp_path: Path, name: str
) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    wanted = quantize_folder(tmp_path / "source", name)
    checkpoint, bits = HuggingFaceCheckpoint(tmp_path / "source"), FORMATS[name][2]
    assert checkpoint.stored_type(f"{STEM}.weight") == (f"TORCHAO-{bits}bit" if bits else "FP8")
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)
        blocks = checkpoint.quantized_blocks(key)
        assert (blocks is None) == (not bits)
        if blocks is not None:
            assert blocks.zero_points is not None
            grid = (blocks.values - blocks.zero_points[..., None].astype(np.float32)) * blocks.scales[..., None]
            np.testing.assert_array_equal(grid.reshape(expected.shape), expected.numpy(), err_msg=key)
    if name == "intx":
        manifest = export_package(checkpoint, tmp_path / "package", "keep")
        assert manifest.notes == ("Every matrix keeps the grid of its source, or stays in F32.",)


BROKEN: dict[str, tuple[str, str, Callable[[torch.Tensor], torch.Tensor | None], str]] = {
    "no scale": ("int8", "scale", lambda _: None, r"its scale missing, its zero point \[128, 1\]"),
    "no zero point": ("int8", "zero_point", lambda _: None, "its zero point missing"),
    "groups that divide no row": ("intx", "scale", lambda scale: scale.repeat(1, 2)[:, :3], r"its scale \[128, 3\]"),
    "floats for integers": (
        "int8", "qdata", lambda values: values.float(), r"up_proj\._weight_qdata \(F32 instead of I8\)",
    ),
    "integers of more bits": (
        "intx", "qdata", lambda values: values * 16, r"_weight_qdata has integers from -\d+ to \d+, and .* say 4 bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_fit_each_other_are_refused_by_name(save_llama: Any, tmp_path: Path, case: str) -> None:
    name, part, change, told = BROKEN[case]
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, name)
    change_tensor(tmp_path, f"{STEM}._weight_{part}", change)
    with pytest.raises(CheckpointError, match=told):
        HuggingFaceCheckpoint(tmp_path).tensor(f"{STEM}.weight")


@pytest.mark.parametrize("kinds", [{"default": {"_type": "Int4WeightOnlyConfig"}}, {"default": {}, "a": {}}, "int8"])
def test_other_kinds_are_refused(save_llama: Any, tmp_path: Path, kinds: object) -> None:
    save_llama(tmp_path, intermediate_size=128)
    settings = {"quant_method": "torchao", "quant_type": kinds}
    say_quantized(tmp_path, settings)
    with pytest.raises(CheckpointError, match=r"quantized \(quant_method 'torchao'\), in a way that is not supported"):
        HuggingFaceCheckpoint(tmp_path)

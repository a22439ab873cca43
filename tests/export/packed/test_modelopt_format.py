"""Folders that nvidia-modelopt quantized by AWQ to integers, packed here as it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_folders import Tensors, change_tensor, pack_matrices

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

STEM = "model.layers.0.mlp.up_proj"
CHANNELS = "o_proj", "down_proj"  # behind no norm that could have taken them in
GROUP = 32


def quantize_folder(folder: Path, *with_channels: str) -> Tensors:
    def pack(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        blocks = weight.unflatten(1, (-1, GROUP))
        scales = blocks.abs().amax(2) / 7
        values = (blocks / scales[..., None]).round().clamp(-8, 7).to(torch.int8)
        pairs = values.flatten(1) & 15
        stored = (pairs[::2] | (pairs[1::2] << 4)).view(torch.uint8)
        parts = {f"{stem}.weight": stored, f"{stem}.weight_scale": scales}
        stands_for = (values * scales[..., None]).flatten(1)
        if stem.endswith(with_channels):
            channels = torch.linspace(0.5, 2, weight.shape[1]).half()
            parts[f"{stem}.pre_quant_scale"] = channels
            stands_for = stands_for * channels.float()
        return parts, stands_for

    settings = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "config_groups": {}}
    return pack_matrices(folder, settings, pack)


def test_a_matrix_is_read_as_what_it_stands_for_with_the_scales_of_its_inputs(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, *CHANNELS)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.stored_type(f"{STEM}.weight") == "MODELOPT-4bit"
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)
        blocks = checkpoint.quantized_blocks(key)
        assert (blocks is None) == any(name in key for name in CHANNELS)
        if blocks is not None:
            assert (blocks.bits, blocks.block_size, blocks.zero_points) == (4, GROUP, None)
            grid = blocks.values * blocks.scales[..., None]
            np.testing.assert_array_equal(grid.reshape(expected.shape), expected.numpy(), err_msg=key)


def test_integers_are_kept(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source")
    manifest = export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", "keep")
    assert manifest.notes == ("Every matrix keeps the grid of its source, or stays in F32.",)


def test_that_matrices_whose_inputs_have_scales_move_to_8_bits_is_said(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source", *CHANNELS)
    manifest = export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", "keep")
    moved = "MODELOPT-4bit with scales of inputs"
    assert manifest.notes == (f"Stored in 8 bits, since no fast operator has their grids: {moved}.",)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["keep", "fp32"])
def test_a_scale_that_is_not_finite_is_refused_without_a_warning(
    save_llama: Any, tmp_path: Path, precision: str
) -> None:
    def damaged(scales: torch.Tensor) -> torch.Tensor:
        scales[0, 0] = torch.inf
        return scales

    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source")
    change_tensor(tmp_path / "source", f"{STEM}.weight_scale", damaged)
    with pytest.raises(CheckpointError, match=f"{STEM}.weight has NaN or infinite values"):
        export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", precision)


BROKEN: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "scales of others": ("weight_scale", lambda scales: scales[:-1], r"weight_scale \[127, 2\]"),
    "groups that divide no row": (
        "weight_scale", lambda scales: scales.repeat(1, 2)[:, :3], r"weight_scale \[128, 3\]",
    ),
    "other inputs": ("pre_quant_scale", lambda channels: channels[:-1], r"pre_quant_scale \[63\]"),
    "signed bytes": ("weight", lambda packed: packed.view(torch.int8), r"up_proj\.weight \(I8 instead of U8\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_fit_each_other_are_refused_by_name(save_llama: Any, tmp_path: Path, case: str) -> None:
    part, change, told = BROKEN[case]
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "up_proj")
    change_tensor(tmp_path, f"{STEM}.{part}", change)
    with pytest.raises(CheckpointError, match=told):
        HuggingFaceCheckpoint(tmp_path).tensor(f"{STEM}.weight")

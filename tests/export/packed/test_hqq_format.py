"""Folders that HQQ quantized, as transformers saves them: written here with the parts that it saves."""

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
GROUP = 32
# A packing of hqq 0.2.8 -> by how many bits each part of the rows is shifted in a word, the first rows first.
PACKINGS: dict[str, tuple[int, ...]] = {
    "8bit_u8": (0,),
    "4bit_u8": (4, 0),
    "3bit_32": (27, 24, 21, 18, 15, 12, 9, 6, 3, 0),
    "2bit_u8": (6, 4, 2, 0),
    "1bit_u8": (7, 6, 5, 4, 3, 2, 1, 0),
}


def packed(values: torch.Tensor, packing: str) -> torch.Tensor:
    shifts = PACKINGS[packing]
    rows = torch.zeros((-len(values) % len(shifts), values.shape[1]), dtype=values.dtype)
    parts = torch.cat((values, rows)).chunk(len(shifts))
    words = sum((part << shift for part, shift in zip(parts, shifts, strict=True)), torch.zeros_like(parts[0]))
    return words.to(torch.int32 if packing == "3bit_32" else torch.uint8)


def quantize_folder(folder: Path, packing: str, axis: int) -> Tensors:
    bits = int(packing[0])

    def pack(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        groups = weight.reshape((-1, GROUP) if axis else (GROUP, -1))
        least, most = (part(groups, axis, keepdim=True) for part in (torch.amin, torch.amax))
        scale = ((most - least) / ((1 << bits) - 1)).half()
        zero = (-least / scale).half()
        values = (groups / scale + zero).round().clamp(0, (1 << bits) - 1).int()
        parts = {
            "W_q": packed(values, packing),
            "scale": scale,
            "zero": zero,
            "shape": torch.tensor(weight.shape),
            "axis": torch.tensor(axis, dtype=torch.int32),
            "packing": torch.tensor(list(packing.encode()), dtype=torch.uint8),
            "nbits": torch.tensor(bits, dtype=torch.int32),
            "encoded_state_dict": torch.tensor(1, dtype=torch.uint8),
        }
        stands_for = ((values - zero.float()) * scale.float()).reshape(weight.shape)
        return {f"{stem}.{name}": part for name, part in parts.items()}, stands_for

    return pack_matrices(folder, {"quant_method": "hqq", "quant_config": {}, "skip_modules": ["lm_head"]}, pack)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_matrix_is_read_as_what_it_stands_for(save_llama: Any, tmp_path: Path, packing: str, axis: int) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, packing, axis)
    checkpoint, bits = HuggingFaceCheckpoint(tmp_path), int(packing[0])
    assert checkpoint.stored_type(f"{STEM}.weight") == f"HQQ-{bits}bit"
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)
        blocks = checkpoint.quantized_blocks(key)
        assert (blocks is not None) == (axis == 1 and bits in (4, 8))
        if blocks is not None:
            assert blocks.offsets is not None
            assert blocks.zero_points is not None
            steps = blocks.values - blocks.zero_points[..., None].astype(np.float32)
            grid = steps * blocks.scales[..., None] + blocks.offsets[..., None]
            np.testing.assert_array_equal(grid.reshape(expected.shape), expected.numpy(), err_msg=key)


def test_groups_of_rows_stay_in_4_bits(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source", "4bit_u8", 1)
    manifest = export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", "keep")
    assert manifest.notes == ("Every matrix keeps the grid of its source, or stays in F32.",)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["keep", "fp32"])
def test_a_scale_that_is_not_finite_is_refused_without_a_warning(
    save_llama: Any, tmp_path: Path, precision: str
) -> None:
    def damaged(scales: torch.Tensor) -> torch.Tensor:
        scales[0, 0] = torch.inf
        return scales

    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source", "4bit_u8", 1)
    change_tensor(tmp_path / "source", f"{STEM}.scale", damaged)
    change_tensor(tmp_path / "source", f"{STEM}.zero", lambda zero: torch.cat((zero[:1].round(), zero[1:])))
    with pytest.raises(CheckpointError, match=f"{STEM}.weight has NaN or infinite values"):
        export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", precision)


BROKEN: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor | None], str]] = {
    "no scale": ("scale", lambda _: None, "scale is missing"),
    "zero points of others": ("zero", lambda zero: zero[:-1], r"zero is \[255, 1\]"),
    "words of others": ("W_q", lambda words: words[:-1], r"W_q is \[127, 32\]"),
    "another size": ("shape", lambda shape: shape + 1, r"shape is \[2\]"),
    "no packing of hqq's": ("packing", lambda packing: packing + 1, r"packing is \[7\]"),
    "no axis": ("axis", lambda axis: axis + 2, r"axis is \[\]"),
    "floats for words": ("W_q", lambda words: words.float(), r"up_proj\.W_q \(F32 instead of U8\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_fit_each_other_are_refused_by_name(save_llama: Any, tmp_path: Path, case: str) -> None:
    part, change, told = BROKEN[case]
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "4bit_u8", 1)
    change_tensor(tmp_path, f"{STEM}.{part}", change)
    with pytest.raises(CheckpointError, match=told):
        HuggingFaceCheckpoint(tmp_path).tensor(f"{STEM}.weight")

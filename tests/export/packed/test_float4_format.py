"""Checkpoints whose matrices are floats of 4 bits in blocks, packed here as ModelOpt and compressed-tensors do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from json_files import edited_json
from quantized_folders import Tensors, change_tensor, pack_matrices, say_quantized
from safetensors.torch import load_file, save_file

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

# OCP Microscaling Formats 1.0: a bit of sign, two of exponent, one of mantissa.
LEVELS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
STEM = "model.layers.0.mlp.up_proj"


def packed(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest levels' numbers, two a byte, the first in the lower half; and the levels."""
    codes = (scaled[..., None] - LEVELS).abs().argmin(-1).flatten(1).to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, LEVELS[codes.long()]


def nvfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what is packed, the blocks' scales, the scale of all by which those are multiplied, and the weight."""
    blocks = weight.unflatten(1, (-1, 16))
    of_all = weight.abs().max() / (6 * 448)
    scales = (blocks.abs().amax(2) / 6 / of_all).clamp(min=2**-9).to(torch.float8_e4m3fn)
    steps = (scales.float() * of_all)[..., None]
    codes, levels = packed(blocks / steps)
    return codes, scales, of_all, levels * steps.expand(blocks.shape).flatten(1)


def modelopt(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, of_all, stands_for = nvfp4(weight)
    parts = {"weight": codes, "weight_scale": scales, "weight_scale_2": of_all, "input_scale": torch.tensor(0.1)}
    return {f"{stem}.{part}": tensor for part, tensor in parts.items()}, stands_for


def compressed(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    codes, scales, of_all, _ = nvfp4(weight)
    divisor = (1 / of_all).reshape(1)
    parts = {
        "weight_packed": codes,
        "weight_scale": scales,
        "weight_global_scale": divisor,
        "input_global_scale": 2 * divisor,
    }
    low, high = LEVELS[(codes & 15).long()], LEVELS[(codes >> 4).long()]
    levels = torch.stack([low, high], dim=2).flatten(1)
    stands_for = levels * (scales.float() / divisor).repeat_interleave(16, dim=1)
    return {f"{stem}.{part}": tensor for part, tensor in parts.items()}, stands_for


def mxfp4(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    blocks = weight.unflatten(1, (-1, 32))
    exponents = blocks.abs().amax(2).log2().floor() - 2
    steps = exponents.exp2()[..., None]
    codes, levels = packed(blocks / steps)
    tensors = {f"{stem}.weight_packed": codes, f"{stem}.weight_scale": (exponents + 127).to(torch.uint8)}
    return tensors, levels * steps.expand(blocks.shape).flatten(1)


def quark(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    tensors, stands_for = mxfp4(stem, weight)
    return {name.replace("_packed", ""): tensor for name, tensor in tensors.items()}, stands_for


def with_cache_scales(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Keys and values of one byte, in three ways of naming their scales."""
    tensors, stands_for = fp8(stem, weight)
    attention, _, name = stem.rpartition(".")
    if name == "k_proj":
        places = (f"{attention}.kv_scale", f"{stem}.k_scale", f"{stem}.output_scale")
        tensors |= {place: torch.tensor(0.5) for place in places}
    return tensors, stands_for


def fp8(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{stem}.weight": stored, f"{stem}.weight_scale": scale}, stored.float() * scale


def mxfp8(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    blocks = weight.unflatten(1, (-1, 32))
    exponents = blocks.abs().amax(2).log2().floor() - 8
    steps = exponents.exp2()[..., None]
    stored = (blocks / steps).clamp(-448, 448).to(torch.float8_e4m3fn)
    tensors = {f"{stem}.weight": stored.flatten(1), f"{stem}.weight_scale": (exponents + 127).to(torch.uint8)}
    return tensors, (stored.float() * steps).flatten(1)


def mixed(pack: Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]) -> Any:
    return lambda stem, weight: (fp8 if "self_attn" in stem else pack)(stem, weight)


FLOATS = {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}
FORMATS: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "modelopt's NVFP4": (modelopt, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, {"NVFP4"}),
    "modelopt's FP8": (fp8, {"quant_method": "modelopt", "quant_algo": "FP8"}, {"FP8"}),
    "modelopt's MXFP8": (mxfp8, {"quant_method": "modelopt", "quant_algo": "MXFP8"}, {"FP8"}),
    "modelopt's, mixed": (
        mixed(modelopt), {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, {"NVFP4", "FP8"},
    ),
    "quark's MXFP4": (
        mixed(quark), {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}}, {"MXFP4", "FP8"},
    ),
    "quark's FP8": (
        with_cache_scales,
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}},
        {"FP8"},
    ),
    "compressed NVFP4": (
        compressed,
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"group_0": FLOATS}},
        {"NVFP4"},
    ),
    "compressed MXFP4": (
        mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {}}, {"MXFP4"},
    ),
    "compressed MXFP8": (
        mxfp8, {"quant_method": "compressed-tensors", "format": "mxfp8-quantized", "config_groups": {}}, {"FP8"},
    ),
    "compressed, mixed": (
        mixed(compressed),
        {"quant_method": "compressed-tensors", "format": "mixed-precision",
         "config_groups": {"group_0": FLOATS, "group_1": {"weights": {"num_bits": 8, "type": "float"}}}},
        {"NVFP4", "FP8"},
    ),
}  # fmt: skip


def quantize_folder(folder: Path, name: str) -> Tensors:
    pack, settings, _ = FORMATS[name]
    return pack_matrices(folder, settings, pack)


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_is_read_as_what_it_stands_for(save_llama: Any, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, name)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert {checkpoint.stored_type(key) for key in wanted} == FORMATS[name][2]
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)
        np.testing.assert_array_equal(checkpoint.rows(key, 3, 7), expected.numpy()[3:7], err_msg=key)
        blocks = checkpoint.quantized_blocks(key)
        if checkpoint.stored_type(key) == "FP8":
            assert blocks is None
            continue
        assert blocks is not None
        grid = blocks.values * blocks.scales[..., None]
        np.testing.assert_array_equal(grid.reshape(expected.shape), expected.numpy(), err_msg=key)


def test_settings_that_lie_beside_config_json_are_read_too(save_llama: Any, tmp_path: Path) -> None:
    """As ModelOpt left them before it wrote a quantization_config."""
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, "modelopt's NVFP4")
    with edited_json(tmp_path / "config.json") as values:
        del values["quantization_config"]
    told = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(told))
    np.testing.assert_array_equal(HuggingFaceCheckpoint(tmp_path).tensor(f"{STEM}.weight"), wanted[f"{STEM}.weight"])
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}}))
    with pytest.raises(CheckpointError, match=r"quantized \(quant_method 'modelopt', quant_algo 'W4A8_AWQ'\)"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
        {"quant_method": "compressed-tensors", "format": "dense", "config_groups": {}, "kv_cache_scheme": {}},
    ],
    ids=["modelopt", "compressed-tensors"],
)
def test_a_folder_that_rounds_keys_and_values_alone_is_plain(
    save_llama: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    save_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"model.layers.0.self_attn.k_scale": torch.ones(1)}, path, metadata={"format": "pt"})
    say_quantized(tmp_path, settings)
    np.testing.assert_array_equal(HuggingFaceCheckpoint(tmp_path).tensor(f"{STEM}.weight"), tensors[f"{STEM}.weight"])


def test_settings_under_compressed_tensors_older_name_are_read_too(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, "compressed NVFP4")
    with edited_json(tmp_path / "config.json") as values:
        values["compression_config"] = values.pop("quantization_config")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.tensor(f"{STEM}.weight"), wanted[f"{STEM}.weight"])
    assert "compression_config" not in checkpoint.hf_config


@pytest.mark.parametrize("name", ["modelopt's NVFP4", "compressed MXFP4"])
def test_keep_holds_it_exactly_and_an_import_does_too(save_llama: Any, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    wanted = quantize_folder(tmp_path / "source", name)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "source")
    manifest = export_package(checkpoint, tmp_path / "package", "keep")
    assert manifest.notes == ("Every matrix keeps the grid of its source, or stays in F32.",)
    assert manifest.quality is not None
    # The activations' 8 bits alone are left.
    assert manifest.quality.mean_kl_divergence < 0.005
    import_checkpoint(tmp_path / "source", tmp_path / "ours")
    imported = HuggingFaceCheckpoint(tmp_path / "ours")
    with PackageCheckpoint(tmp_path / "package") as package:
        for key, expected in wanted.items():
            np.testing.assert_array_equal(package.tensor(key), expected.numpy(), err_msg=key)
            np.testing.assert_array_equal(imported.tensor(key), expected.numpy(), err_msg=key)


BROKEN: dict[str, tuple[str, str, Callable[[torch.Tensor], torch.Tensor | None], str]] = {
    "fewer scales": (
        "modelopt's NVFP4", "weight_scale", lambda scales: scales[:, :-1],
        rf"tensors of {STEM} do not fit each other as NVFP4, which has a scale for 16 weights of a row: weight is "
        r"\[128, 32\], weight_scale is \[128, 3\], weight_scale_2 is \[\]\. Download the model again\.",
    ),
    "no scales": ("compressed MXFP4", "weight_scale", lambda _: None, r"as MXFP4.*: .*weight_scale is missing"),
    "a scale of all for each row": (
        "compressed NVFP4", "weight_global_scale", lambda scale: scale.repeat(128), r"weight_global_scale is \[128\]",
    ),
    "a vector": ("modelopt's NVFP4", "weight", lambda packed: packed[0], r"weight is \[32\]"),
    "scales of another type": (
        "compressed NVFP4", "weight_scale", lambda scales: scales.float(),
        rf"type that is not supported: {STEM}\.weight_scale \(F32 instead of F8_E4M3\)",
    ),
    "integers": (
        "compressed MXFP4", "weight_packed", lambda packed: packed.to(torch.int32),
        rf"type that is not supported: {STEM}\.weight_packed \(I32 instead of U8\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_parts_that_do_not_fit_each_other_are_refused_by_name(save_llama: Any, tmp_path: Path, case: str) -> None:
    name, part, change, told = BROKEN[case]
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, name)
    change_tensor(tmp_path, f"{STEM}.{part}", change)
    with pytest.raises(CheckpointError, match=told):
        HuggingFaceCheckpoint(tmp_path)

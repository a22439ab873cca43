"""Folders that mlx-lm quantized: read as what they stand for, kept on their grid, and refused where they are broken."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from json_files import change_json
from mlx_folder import pack_folder
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.packed.levels import on_levels
from edgelm_export.packed.mlx_format import MLXMatrix, mlx_matrices
from edgelm_export.quantize.keep import keep_grid, on_its_grid
from edgelm_export.quantize.offsets import in_8_bits
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

SaveModel = Callable[..., Any]
MATRIX = "model.layers.0.mlp.down_proj.weight"
SETTINGS = {"bits": 4, "group_size": 32, "mode": "affine"}


def matrix(bits: int, group_size: int, shape: tuple[int, int], mode: str = "affine") -> MLXMatrix:
    return MLXMatrix(stem="m", mode=mode, bits=bits, group_size=group_size, shape=shape)


# 32 normal numbers in bfloat16, by mx.quantize of mlx 0.32.4 on Linux: bits, words, scale, bias (bfloat16), and what
# mx.dequantize makes of them in float32, rounded here to millionths.
BY_MLX = [
    (
        3, [0xA4F5C735, 0x9462D5DD, 0x8AD82DCA], 0.50390625, -2.515625,
        [0.003906, 0.507812, -0.5, -1.003906, -0.5, -1.003906, 0.003906, 1.011719, -0.5, -0.5, 0.507812, 0.507812,
         0.003906, -1.003906, 0.003906, 0.507812, -1.507812, -0.5, -2.011719, -1.507812, -2.011719, 0.003906, -1.507812,
         0.507812, 0.003906, 0.003906, -2.515625, -0.5, 0.003906, 0.003906, -1.507812, -0.5],
    ),
    (
        4, [0xFA6869BA, 0xDA6ABC88, 0xB5935285, 0x84AA809B], 0.251953125, -2.515625,
        [0.003906, 0.255859, -0.248047, -1.003906, -0.5, -1.003906, 0.003906, 1.263672, -0.5, -0.5, 0.507812, 0.255859,
         0.003906, -1.003906, 0.003906, 0.759766, -1.255859, -0.5, -2.011719, -1.255859, -1.759766, -0.248047,
         -1.255859, 0.255859, 0.255859, -0.248047, -2.515625, -0.5, 0.003906, 0.003906, -1.507812, -0.5],
    ),
    (
        5, [0x1906CAD4, 0x5BE1F0FD, 0x1609D51B, 0x75B2A455, 0x822B4802], 0.1259765625, -2.515625,
        [0.003906, 0.255859, -0.248047, -0.87793, -0.5, -1.003906, 0.003906, 1.389648, -0.5, -0.625977, 0.507812,
         0.381836, 0.129883, -0.87793, 0.003906, 0.759766, -1.381836, -0.5, -1.885742, -1.255859, -1.885742, -0.248047,
         -1.255859, 0.255859, 0.129883, -0.12207, -2.515625, -0.5, 0.003906, 0.129883, -1.507812, -0.5],
    ),
    (
        6, [0x626A5BA9, 0x17E1FEA6, 0xD296ABBF, 0x4B50A893, 0x09ACB549, 0x850AE880], 0.061279296875, -2.515625,
        [-0.003174, 0.303223, -0.248291, -0.922363, -0.432129, -0.983643, 0.058105, 1.344971, -0.493408, -0.615967,
         0.487061, 0.364502, 0.119385, -0.922363, -0.003174, 0.670898, -1.351318, -0.432129, -1.902832, -1.290039,
         -1.841553, -0.248291, -1.290039, 0.241943, 0.180664, -0.187012, -2.515625, -0.554688, -0.064453, 0.119385,
         -1.535156, -0.493408],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "stored", "scale", "bias", "wanted"), BY_MLX)
def test_what_mlx_packed_is_what_mlx_reads(
    bits: int, stored: list[int], scale: float, bias: float, wanted: list[float]
) -> None:
    tensors = {
        "m.weight": np.array([stored], np.uint32),
        "m.scales": np.array([[scale]], ml_dtypes.bfloat16),
        "m.biases": np.array([[bias]], ml_dtypes.bfloat16),
    }
    weight = matrix(bits, 32, (1, 32)).weight(tensors.__getitem__)
    np.testing.assert_allclose(weight[0], wanted, rtol=0, atol=6e-7)


def weights_of(checkpoint: HuggingFaceCheckpoint, name: str) -> NDArray[np.float32]:
    blocks = checkpoint.quantized_blocks(name)
    assert blocks is not None
    places = {5: 8, 6: 4}.get(blocks.bits, 1)
    zeros = 0 if blocks.zero_points is None else blocks.zero_points[..., None].astype(np.float32) / places
    weights = (blocks.values - zeros) * blocks.scales[..., None]
    if blocks.offsets is not None:
        weights += blocks.offsets[..., None]
    return weights.reshape(len(weights), -1)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_a_folder_is_read_as_what_it_stands_for(
    save_llama: SaveModel, tmp_path: Path, bits: int, group_size: int
) -> None:
    save_llama(tmp_path, hidden_size=128, intermediate_size=128)
    settings = {"bits": bits, "group_size": group_size}  # as older versions of mlx-lm write it, without a mode
    wanted = pack_folder(tmp_path, settings, group_size=group_size)
    assert "model.embed_tokens.weight" in wanted
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert not checkpoint.hf_config.keys() & {"quantization", "quantization_config"}
    assert checkpoint.source["tensor_types"] == ["F32", f"MLX-{bits}bit"]
    for name, weight in wanted.items():
        np.testing.assert_allclose(checkpoint.tensor(name), weight, rtol=1e-6, atol=1e-7, err_msg=name)
        blocks = checkpoint.quantized_blocks(name)
        assert blocks is not None
        # Where a group begins is any float16 here, which two bits have no fine enough offsets for.
        assert (blocks.bits, blocks.block_size) == ({2: 4, 3: 4}.get(bits, bits), group_size)
        reach = np.abs(weight).max() * 2**-7
        np.testing.assert_allclose(weights_of(checkpoint, name), weight, rtol=0, atol=reach, err_msg=name)


def test_modules_have_settings_of_their_own_or_are_left_out(save_llama: SaveModel, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    bits = {"down_proj": 8, "v_proj": 6, "o_proj": 0}
    own = {
        f"model.layers.{layer}.{block}.{name}": {"bits": bits[name], "group_size": 32} if bits[name] else False
        for layer in (0, 1)
        for block, name in (("mlp", "down_proj"), ("self_attn", "v_proj"), ("self_attn", "o_proj"))
    }
    wanted = pack_folder(
        tmp_path,
        SETTINGS | own | {"model.layers.0.mlp.up_proj": True},
        lambda name: next((count for part, count in bits.items() if part in name), 4),
    )
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert checkpoint.source["tensor_types"] == ["F32", "MLX-4bit", "MLX-6bit", "MLX-8bit"]
    assert checkpoint.stored_type("model.layers.1.self_attn.o_proj.weight") == "F32"
    for name, weight in wanted.items():
        np.testing.assert_allclose(checkpoint.tensor(name), weight, rtol=1e-6, atol=1e-7, err_msg=name)


def test_keep_holds_its_grid_and_other_precisions_read_it(save_llama: SaveModel, tmp_path: Path) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    pack_folder(tmp_path / "source", SETTINGS)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "source")
    manifest = export_package(checkpoint, tmp_path / "package", "keep")
    assert manifest.notes == ("Stored in 8 bits, since no fast operator has their grids: MLX-4bit of the embedding.",)
    assert manifest.source["tensor_types"] == ["F32", "MLX-4bit"]
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.005
    kept = keep_grid(checkpoint, MATRIX)
    assert isinstance(kept, PackedWeight)
    assert (kept.bits, kept.block_size) == (4, 32)
    assert np.abs(unpack(kept) - checkpoint.tensor(MATRIX)).max() < kept.scales.max() / 25
    note = "The source has a grid of its own (MLX-4bit): --precision keep loses less."
    assert note in export_package(checkpoint, tmp_path / "int4", "int4").notes
    import_checkpoint(tmp_path / "source", tmp_path / "ours")
    np.testing.assert_array_equal(HuggingFaceCheckpoint(tmp_path / "ours").tensor(MATRIX), checkpoint.tensor(MATRIX))


@pytest.mark.parametrize("bits", [3, 5, 6, 8])
def test_a_package_of_any_bits_computes_with_them(save_llama: SaveModel, tmp_path: Path, bits: int) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    pack_folder(tmp_path / "source", SETTINGS | {"bits": bits, "group_size": 64}, group_size=64)
    manifest = export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", "keep")
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.005
    assert manifest.notes[0].endswith(f": MLX-{bits}bit of the embedding.")


def whole(bits: int, moved: float = 0.0) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return blocks that begin at a whole number of steps, moved by a part of one."""
    random = np.random.default_rng(0)
    values = random.integers(0, 1 << bits, (16, 4, 32)).astype(np.uint8)
    scales = random.choice([-1, 1], (16, 4)) * random.uniform(0.01, 0.02, (16, 4)).astype(np.float16)
    zeros = random.integers(1, 1 << bits, (16, 4))
    return values, scales.astype(np.float32), (-(zeros + moved) * scales).astype(np.float32)


def bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    return numbers.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_what_bfloat16_moves_a_lowest_weight_by_is_no_offset(bits: int) -> None:
    """mlx puts zero on a step. A lowest weight is one of its source's, and the scale between the two is rounded."""
    values, scales, lowest = whole(bits)
    zeros, lowest = np.rint(-lowest / scales), bfloat16(lowest)
    blocks = on_levels(values, bfloat16(-lowest / zeros), lowest, bits=bits)
    assert blocks.offsets is None
    assert blocks.bits == (4 if bits == 3 else bits)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_lies_further_off_is_one(bits: int) -> None:
    values, scales, lowest = whole(bits, 0.25)
    blocks = on_levels(values, scales, lowest, bits=bits)
    assert blocks.bits == 4
    assert blocks.offsets is not None
    np.testing.assert_allclose(np.abs(blocks.offsets), 0.25 * np.abs(scales), rtol=1e-4)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_blocks_beyond_the_reach_of_zero_points_have_offsets_too(bits: int) -> None:
    values, scales, _ = whole(bits)
    scales, lowest = np.abs(scales), np.full_like(scales, 3.0)
    wanted = (values * scales[..., None] + lowest[..., None]).reshape(16, -1)
    weight = on_its_grid(on_levels(values, scales, lowest, bits=bits), 128)
    weight.check((16, 128))
    assert (weight.bits, weight.offsets is None) == (bits, False)
    np.testing.assert_allclose(unpack(weight), wanted, rtol=0, atol=0.1)
    wide = in_8_bits(weight)
    assert (wide.bits, wide.offsets) == (8, None)
    np.testing.assert_allclose(unpack(wide), unpack(weight), rtol=0, atol=wanted.max() / 250)


def test_fused_projections_are_taken_apart_on_their_grid(save_model: SaveModel, tmp_path: Path) -> None:
    save_model("phi3", tmp_path, pad_token_id=0, intermediate_size=128)
    wanted = pack_folder(tmp_path, SETTINGS)["model.layers.1.self_attn.qkv_proj.weight"]
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_allclose(checkpoint.tensor(name), wanted[64:96], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(weights_of(checkpoint, name), wanted[64:96], rtol=0, atol=1e-3)


def test_a_head_that_repeats_the_embedding_is_passed_over(save_llama: SaveModel, tmp_path: Path) -> None:
    """Older versions of mlx-lm wrote a Gemma 3 so."""
    save_llama(tmp_path, intermediate_size=128)
    pack_folder(tmp_path, SETTINGS)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors |= {f"lm_head.{part}": tensors[f"model.embed_tokens.{part}"] for part in ("weight", "scales", "biases")}
    save_file(tensors, path)
    assert HuggingFaceCheckpoint(tmp_path).config.tie_word_embeddings
    tensors["lm_head.biases"] = tensors["lm_head.biases"] * 2
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="ties the head to the embedding"):
        HuggingFaceCheckpoint(tmp_path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bits in words": ({"bits": "four"}, "quantization.bits is 'four'; supported in mode affine: 2, 3, 4, 5, 6, 8"),
    "7 bits": ({"bits": 7}, "quantization.bits is 7"),
    "true for bits": ({"bits": True}, "quantization.bits is True"),
    "a list of bits": ({"bits": [4]}, r"quantization.bits is \[4\]"),
    "groups of none": ({"group_size": 0}, "quantization.group_size is 0; supported in mode affine: 32, 64, 128"),
    "groups below none": ({"group_size": -32}, "quantization.group_size is -32"),
    "huge groups": ({"group_size": 2**70}, f"quantization.group_size is {2**70}"),
    "groups of a float": ({"group_size": 32.0}, "quantization.group_size is 32.0"),
    "a mode that is not read": ({"mode": "mxfp6"}, "quantization.mode is 'mxfp6'; supported: affine, mxfp4, nvfp4, mx"),
    "a mode that is none": ({"mode": ["affine"]}, r"quantization.mode is \['affine'\]"),
    "mxfp4 in 8 bits": ({"mode": "mxfp4", "bits": 8}, "quantization.bits is 8; supported in mode mxfp4: 4"),
    "another mode": ({"mode": "mxfp4"}, r"tensors do not fit a llama model of this config. unknown: .*q_proj.biases"),
    "other groups": ({"group_size": 64}, r"tokens.weight is \[320, 8\], not \[320, 16\], as .*tokens.scales"),
    "other bits": ({"bits": 8}, r"tokens.weight is \[320, 8\], not \[320, 16\], .* 8 bits in groups of 32"),
    "a module's settings a number": ({"Q": 4}, r"quantization\['Q'\] is 4, and Q has scales; it must be an object"),
    "a module's settings false": ({"Q": False}, r"quantization\['Q'\] is False, and Q has scales"),
    "a module's bits": ({"Q": {"bits": None}}, r"quantization\['Q'\].bits is None"),
    "a module's groups": ({"Q": {"group_size": "32"}}, r"quantization\['Q'\].group_size is '32'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_are_none_are_refused_by_name(save_llama: SaveModel, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    pack_folder(tmp_path, SETTINGS)
    changes, told = REFUSED[name]
    module = "model.layers.0.self_attn.q_proj"
    changes = {module if key == "Q" else key: value for key, value in changes.items()}
    change_json(tmp_path / "config.json", quantization=SETTINGS | changes)
    with pytest.raises(CheckpointError, match=re.sub(r"\bQ\b", module, told)):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize(
    ("part", "tensor", "told"),
    [
        ("biases", None, r"biases is missing, not \[64, 2\]"),
        ("biases", np.zeros((64, 3), np.float16), r"biases is \[64, 3\], not \[64, 2\]"),
        ("weight", np.zeros((64, 9), np.uint32), r"weight is \[64, 9\], not \[64, 8\]"),
        ("scales", np.zeros((64, 4), np.float16), r"weight is \[64, 8\], not \[64, 16\]"),
        ("scales", np.zeros(64, np.float16), r"unknown: .*q_proj.biases, .*q_proj.scales"),
        ("scales", np.zeros((64, 0), np.float16), r"weight is \[64, 8\], not \[64, 0\]"),
        ("weight", np.zeros((64, 8), np.float32), r"weight is of type float32; mlx has uint32 there"),
        ("scales", np.zeros((64, 2), np.int32), r"scales is of type int32; mlx has float16 or bfloat16 or float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    save_llama: SaveModel, tmp_path: Path, part: str, tensor: NDArray[Any] | None, told: str
) -> None:
    save_llama(tmp_path, intermediate_size=128)
    pack_folder(tmp_path, SETTINGS)
    path, name = tmp_path / "model.safetensors", "model.layers.0.self_attn.q_proj"
    tensors = load_file(path)
    del tensors[f"{name}.{part}"]
    save_file(tensors | ({} if tensor is None else {f"{name}.{part}": tensor}), path)
    with pytest.raises(CheckpointError, match=told):
        HuggingFaceCheckpoint(tmp_path).tensor(f"{name}.weight")


def test_numbers_that_are_none_are_refused(save_llama: SaveModel, tmp_path: Path) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    pack_folder(tmp_path / "source", SETTINGS)
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.q_proj.biases"][0, 0] = np.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight has NaN or infinite values"):
        export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", "keep")


def test_what_a_modules_own_settings_lack_is_what_mlx_takes_and_not_the_settings_of_all() -> None:
    present = {"a.weight": (8, 8), "a.scales": (8, 1), "a.biases": (8, 1), "b.weight": (8, 4), "b.scales": (8, 1)}
    settings = {"bits": 8, "group_size": 32, "a": {}, "b": {"mode": "mxfp4"}}
    found = mlx_matrices(settings, present, "here")
    assert {name: (matrix.mode, matrix.bits, matrix.group_size) for name, matrix in found.items()} == {
        "a.weight": ("affine", 4, 64),
        "b.weight": ("mxfp4", 4, 32),
    }

"""Checkpoints that arrive quantized, built here by hand as each format's own code packs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_files import change_json, edited_json
from quantized_folders import pack_arrays
from safetensors.numpy import load_file, save_file

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.packed.grid_of_groups import Grid
from edgelm_export.quantize.keep import keep_grid
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

GROUP = 32
Tensors = dict[str, np.ndarray]


def words(values: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Pack integers into int32 along an axis, one after the other, the first into the lowest bits."""
    values = np.moveaxis(values, axis, -1).astype(np.uint64)
    grouped = values.reshape(*values.shape[:-1], -1, 32 // bits)
    packed = sum(grouped[..., i] << np.uint64(bits * i) for i in range(32 // bits))
    return np.ascontiguousarray(np.moveaxis(packed.astype(np.uint32).view(np.int32), -1, axis))


def quantized(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values [N, K], zeros [N, G] and half-precision scales [N, G] of a plain asymmetric quantizer."""
    blocks = weight.reshape(len(weight), -1, GROUP)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = ((high - low) / ((1 << bits) - 1)).astype(np.float16)
    zeros = np.clip(np.rint(-low / scales), 1, (1 << bits) - 1)
    values = np.clip(np.rint(blocks / scales[..., None].astype(np.float32)) + zeros[..., None], 0, (1 << bits) - 1)
    return values.reshape(weight.shape), zeros, scales


def gptq(stem: str, weight: np.ndarray, bits: int) -> tuple[Tensors, np.ndarray]:
    values, zeros, scales = quantized(weight, bits)
    groups = np.arange(weight.shape[1]) // GROUP
    tensors = {
        f"{stem}.qweight": words(values.T, bits, 0),
        f"{stem}.qzeros": words(zeros.T - 1, bits, 1),
        f"{stem}.scales": np.ascontiguousarray(scales.T),
        f"{stem}.g_idx": groups.astype(np.int32),
    }
    return tensors, (values - zeros[:, groups]) * scales.astype(np.float32)[:, groups]


def gptq_in_order(stem: str, weight: np.ndarray, bits: int) -> tuple[Tensors, np.ndarray]:
    tensors, stands_for = gptq(stem, weight, bits)
    del tensors[f"{stem}.g_idx"]
    return tensors, stands_for


def gptq_v2(stem: str, weight: np.ndarray, bits: int) -> tuple[Tensors, np.ndarray]:
    """Zero points are stored as they are; AutoRound's own packing has the same."""
    tensors, stands_for = gptq_in_order(stem, weight, bits)
    _, zeros, _ = quantized(weight, bits)
    return tensors | {f"{stem}.qzeros": words(zeros.T, bits, 1)}, stands_for


def awq(stem: str, weight: np.ndarray, bits: int) -> tuple[Tensors, np.ndarray]:
    values, zeros, scales = quantized(weight, bits)
    groups = np.arange(weight.shape[1]) // GROUP

    def shuffled(columns: np.ndarray) -> np.ndarray:
        eights = columns.reshape(len(columns), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return words(eights.reshape(columns.shape), 4, 1)

    tensors = {
        f"{stem}.qweight": shuffled(values.T),
        f"{stem}.qzeros": shuffled(zeros.T),
        f"{stem}.scales": np.ascontiguousarray(scales.T),
    }
    return tensors, (values - zeros[:, groups]) * scales.astype(np.float32)[:, groups]


def compressed(stem: str, weight: np.ndarray, bits: int) -> tuple[Tensors, np.ndarray]:
    """Pack as pack-quantized does: symmetric, one scale a row."""
    middle = 1 << (bits - 1)
    scales = (np.abs(weight).max(-1, keepdims=True) / (middle - 1)).astype(np.float16)
    values = np.clip(np.rint(weight / scales.astype(np.float32)), -middle, middle - 1)
    tensors = {
        f"{stem}.weight_packed": words(values + middle, bits, 1),
        f"{stem}.weight_scale": scales,
        f"{stem}.weight_shape": np.array(weight.shape, np.int64),
    }
    return tensors, values * scales.astype(np.float32)


FORMATS: dict[str, tuple[Callable[..., tuple[Tensors, np.ndarray]], int, dict[str, Any]]] = {
    "gptq-4": (gptq, 4, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq-4 of GPTQModel": (
        gptq, 4,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq", "format": "gptq"},
    ),
    "gptq-4 without an order": (gptq_in_order, 4, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "gptq-4, v2": (
        gptq_v2, 4, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    ),
    "auto-round-4, symmetric": (
        gptq_in_order, 4,
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq", "data_type": "int"},
    ),
    "auto-round-2": (gptq_v2, 2, {"quant_method": "auto-round", "bits": 2, "packing_format": "auto_round"}),
    "auto-round-4 as awq": (
        awq, 4, {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"},
    ),
    "auto-round-4, older": (
        gptq_v2, 4, {"quant_method": "intel/auto-round", "bits": 4, "backend": "auto_round:exllamav2"},
    ),
    "gptq-8": (gptq, 8, {"quant_method": "gptq", "bits": 8, "group_size": GROUP}),
    "gptq-2": (gptq, 2, {"quant_method": "gptq", "bits": 2, "group_size": GROUP}),
    "awq-4": (awq, 4, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}),
    "awq-4 of GPTQModel": (awq, 4, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "format": "gemm"}),
    "compressed-4": (
        compressed, 4,
        {"quant_method": "compressed-tensors", "format": "pack-quantized",
         "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}}},
    ),
}  # fmt: skip


def quantize_folder(folder: Path, name: str) -> Tensors:
    pack, bits, settings = FORMATS[name]
    return pack_arrays(folder, settings, lambda stem, weight: pack(stem, weight, bits))


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_matrix_is_read_as_what_it_stands_for(save_llama: Any, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, name)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    assert "quantization_config" not in checkpoint.hf_config
    for key, weight in wanted.items():
        np.testing.assert_allclose(checkpoint.tensor(key), weight, rtol=1e-6, atol=1e-9, err_msg=key)
        blocks = checkpoint.quantized_blocks(key)
        assert blocks is not None
        zeros = 0 if blocks.zero_points is None else blocks.zero_points[..., None].astype(np.float32)
        grid = (blocks.values - zeros) * blocks.scales[..., None]
        np.testing.assert_allclose(grid.reshape(weight.shape), weight, rtol=1e-6, atol=1e-9, err_msg=key)
    assert checkpoint.stored_type("model.layers.0.mlp.up_proj.weight").endswith(f"-{FORMATS[name][1]}bit")
    assert checkpoint.quantized_blocks("model.embed_tokens.weight") is None


def test_groups_of_compressed_tensors_may_have_different_bits(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    groups = {f"group_{bits}": {"weights": {"num_bits": bits, "type": "int", "strategy": "channel"}} for bits in (4, 8)}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    wanted = pack_arrays(
        tmp_path, settings, lambda stem, weight: compressed(stem, weight, 8 if "self_attn" in stem else 4)
    )
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for key, weight in wanted.items():
        np.testing.assert_allclose(checkpoint.tensor(key), weight, rtol=1e-6, atol=1e-9, err_msg=key)
        assert checkpoint.stored_type(key) == f"COMPRESSED-TENSORS-{8 if 'self_attn' in key else 4}bit"


def test_parts_of_a_fused_matrix_are_its_rows_on_its_grid(save_model: Any, tmp_path: Path) -> None:
    save_model("phi3", tmp_path, intermediate_size=128, pad_token_id=0)
    fused = quantize_folder(tmp_path, "gptq-4")["model.layers.0.self_attn.qkv_proj.weight"]
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for part, rows in (("q", slice(64)), ("k", slice(64, 96)), ("v", slice(96, 128))):
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        np.testing.assert_allclose(checkpoint.tensor(name), fused[rows], rtol=1e-6, atol=1e-9)
        packed = keep_grid(checkpoint, name)
        assert isinstance(packed, PackedWeight)
        np.testing.assert_allclose(unpack(packed), fused[rows], rtol=1e-6, atol=1e-9)


def test_a_matrix_that_others_are_parts_of_is_unpacked_once_for_all_of_them(
    save_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latent attention has two parts for each head."""
    save_model("phi3", tmp_path, intermediate_size=128, pad_token_id=0)
    fused = quantize_folder(tmp_path, "gptq-4")["model.layers.0.self_attn.qkv_proj.weight"]
    checkpoint, unpacked, weight = HuggingFaceCheckpoint(tmp_path), [], Grid.weight
    monkeypatch.setattr(Grid, "weight", lambda grid: unpacked.append(grid) or weight(grid))
    for _ in range(2):  # what one reader changes, no other sees
        for part, rows in (("q", slice(64)), ("k", slice(64, 96)), ("v", slice(96, 128))):
            found = checkpoint.tensor(f"model.layers.0.self_attn.{part}_proj.weight")
            np.testing.assert_allclose(found, fused[rows], rtol=1e-6, atol=1e-9)
            found[:] = 0
    assert len(unpacked) == 1


@pytest.mark.parametrize("inputs", [48, 1024])  # in two groups, of sizes that MatMulNBits is not fast with
def test_groups_of_another_size_than_fast_blocks_are_read_and_not_kept(inputs: int) -> None:
    size = inputs // 2
    values = np.arange(2 * inputs, dtype=np.int32).reshape(2, inputs) % 16
    scales, zeros = np.array([[1.0, 2.0]] * 2, np.float32), np.full((2, 2), 8, np.int32)
    grid = Grid(bits=4, values=values, zeros=zeros, scales=scales, groups=np.arange(inputs) // size)
    assert grid.blocks() is None
    np.testing.assert_array_equal(grid.weight(), (values - 8) * np.repeat(scales, size, axis=1))


@pytest.mark.parametrize("said_by", ["g_idx", "group_size"])
def test_a_last_group_may_have_fewer_inputs(save_llama: Any, tmp_path: Path, said_by: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    path, stem = tmp_path / "model.safetensors", "model.layers.0.mlp.down_proj"
    values, zeros, scales = quantized(load_file(path)[f"{stem}.weight"], 4)
    quantize_folder(tmp_path, "gptq-4 without an order")
    groups = np.arange(128) // 48  # 48, 48 and 32
    tensors = load_file(path)
    tensors |= {f"{stem}.{part}": np.ascontiguousarray(tensors[f"{stem}.{part}"][:3]) for part in ("scales", "qzeros")}
    if said_by == "g_idx":
        tensors[f"{stem}.g_idx"] = groups.astype(np.int32)
    else:
        change_json(tmp_path / "config.json", quantization_config=FORMATS["gptq-4"][2] | {"group_size": 48})
    save_file(tensors, path, metadata={"format": "pt"})
    expected = (values - zeros[:, groups]) * scales.astype(np.float32)[:, groups]
    found = HuggingFaceCheckpoint(tmp_path).tensor(f"{stem}.weight")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_keep_leaves_a_source_that_is_on_no_grid_as_it_is_and_says_so(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path / "source")
    manifest = export_package(HuggingFaceCheckpoint(tmp_path / "source"), tmp_path / "package", "keep")
    assert manifest.notes == ("The source is on no grid: keep leaves its matrices in F32.",)


@pytest.mark.parametrize("name", ["gptq-4", "awq-4", "compressed-4"])
def test_keep_repacks_it_without_rounding(save_llama: Any, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source", name)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "source")
    manifest = export_package(checkpoint, tmp_path / "package", "keep")
    assert manifest.notes == ("Every matrix keeps the grid of its source, or stays in F32.",)
    assert manifest.quality is not None
    # The activations' 8 bits alone are left. Measured: 0.0006 or less.
    assert manifest.quality.mean_kl_divergence < 0.005
    size = next(entry.size for entry in manifest.files if entry.path == "model.onnx.data")
    export_package(checkpoint, tmp_path / "fp32", "fp32")
    assert size < (tmp_path / "fp32" / "model.onnx.data").stat().st_size * 0.75
    assert len(list(reference_logits(checkpoint, [[1, 2, 3]]))) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keep_leaves_matrices_that_are_not_packed_in_their_type(save_llama: Any, tmp_path: Path, dtype: str) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source", "awq-4")
    path = tmp_path / "source" / "model.safetensors"
    narrowed = {
        name: tensor.astype(dtype) if tensor.dtype == np.float32 else tensor for name, tensor in load_file(path).items()
    }
    save_file(narrowed, path, metadata={"format": "pt"})
    checkpoint = HuggingFaceCheckpoint(tmp_path / "source")
    manifest = export_package(checkpoint, tmp_path / "package", "keep")
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence < 0.005
    with PackageCheckpoint(tmp_path / "package") as package:
        name = "model.embed_tokens.weight"
        assert package.stored_type(name) == {"float16": "F16", "bfloat16": "BF16"}[dtype]
        np.testing.assert_array_equal(package.tensor(name), checkpoint.tensor(name))


def test_groups_in_the_order_of_activations_are_read_and_moved_to_eight_bits(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path / "source", intermediate_size=128)
    quantize_folder(tmp_path / "source", "gptq-4")
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    for key in tensors:
        if key.endswith("g_idx"):
            tensors[key] = np.ascontiguousarray(tensors[key][::-1])
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = HuggingFaceCheckpoint(tmp_path / "source")
    assert checkpoint.quantized_blocks("model.layers.0.mlp.up_proj.weight") is None
    manifest = export_package(checkpoint, tmp_path / "package", "keep")
    assert manifest.notes[0].endswith("GPTQ-4bit.")


UNFIT = "self_attn.q_proj do not fit each other as "
BROKEN: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray | None], str]] = {
    **{
        f"{name} without {part}": (name, part, lambda _: None, rf"{UNFIT}\S+ in 4 bits: .*{part} is missing")
        for name, parts in (
            ("gptq-4", ("qzeros", "scales")),
            ("awq-4", ("qzeros", "scales")),
            ("compressed-4", ("weight_scale", "weight_shape")),
        )
        for part in parts
    },
    "fewer scales": ("gptq-4", "scales", lambda scales: scales[:1], r"qzeros is \[2, 8\], scales is \[1, 64\]"),
    "scales of no group": ("awq-4", "scales", lambda scales: scales[:0], r"scales is \[0, 64\]"),
    "scales of fewer outputs": ("awq-4", "scales", lambda scales: scales[:, :5], r"scales is \[2, 5\]"),
    "one scale": ("compressed-4", "weight_scale", lambda scales: scales[0], r"weight_scale is \[1\]"),
    "more groups than inputs": ("compressed-4", "weight_scale", lambda scales: scales.repeat(65, 1), r"\[64, 65\]"),
    "groups that do not divide the inputs": (
        "compressed-4", "weight_scale", lambda scales: scales.repeat(3, 1), r"weight_scale is \[64, 3\]",
    ),
    "groups for fewer inputs": ("gptq-4", "g_idx", lambda groups: groups[1:], r"g_idx is \[63\]"),
    "groups that are not there": ("gptq-4", "g_idx", lambda groups: groups + 1, r"groups from 1 to 2; there are 2\."),
    "groups below none": ("gptq-4", "g_idx", lambda groups: groups - 1, r"groups from -1 to 0; there are 2\."),
    "another shape": (
        "compressed-4", "weight_shape", lambda shape: shape // 2,
        r"weight_shape is \[32, 32\], and weight_packed holds \[64, 64\]",
    ),
    "zero points for others": (
        "compressed-4", "weight_zero_point", lambda _: np.zeros((7, 1), np.int32), r"weight_zero_point is \[7, 1\]",
    ),
    "floats for integers": (
        "gptq-4", "qweight", lambda words: words.view(np.float32), r"q_proj\.qweight \(F32 instead of I32\)",
    ),
}  # fmt: skip


def test_an_order_of_activations_needs_its_groups(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "gptq-4 without an order")
    with edited_json(tmp_path / "config.json") as config:
        config["quantization_config"]["desc_act"] = True
    with pytest.raises(CheckpointError, match=r"do not fit each other as gptq in 4 bits: .*g_idx is missing"):
        HuggingFaceCheckpoint(tmp_path)


@pytest.mark.parametrize("key", ["rotation_config", "spinquant_config"])
def test_weights_for_rotated_activations_are_refused(save_llama: Any, tmp_path: Path, key: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "auto-round-4, symmetric")
    with edited_json(tmp_path / "config.json") as config:
        config["quantization_config"][key] = {"hadamard_type": "hadamard"}
    with pytest.raises(CheckpointError, match=rf"{key} is .'hadamard_type': .*rotate its activations as it runs"):
        HuggingFaceCheckpoint(tmp_path)


def test_single_modules_of_gptq_may_have_other_bits(save_llama: Any, tmp_path: Path) -> None:
    """As GPTQModel's `dynamic` and AutoRound's `extra_config` ask for."""
    save_llama(tmp_path, intermediate_size=128)
    stem = "model.layers.0.mlp.down_proj"
    weight = load_file(tmp_path / "model.safetensors")[f"{stem}.weight"]
    quantize_folder(tmp_path, "gptq-4")
    tensors, stands_for = gptq(stem, weight, 8)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    np.testing.assert_allclose(checkpoint.tensor(f"{stem}.weight"), stands_for, rtol=1e-6, atol=1e-9)
    assert checkpoint.stored_type(f"{stem}.weight") == "GPTQ-8bit"
    assert checkpoint.stored_type("model.layers.1.mlp.down_proj.weight") == "GPTQ-4bit"


def test_compressed_tensors_may_have_groups_in_another_order(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, "compressed-4")
    path, stem = tmp_path / "model.safetensors", "model.layers.0.mlp.down_proj"
    tensors = load_file(path)
    scales = tensors[f"{stem}.weight_scale"]
    order = np.random.default_rng(0).permutation(np.arange(128) // GROUP).astype(np.int32)
    factors = np.array([1, 2, 4, 8], np.float16)
    tensors |= {f"{stem}.weight_scale": scales * factors, f"{stem}.weight_g_idx": order}
    tensors["model.layers.0.mlp.up_proj.weight_g_idx"] = np.full(64, -1, np.int32)  # in no order
    save_file(tensors, path, metadata={"format": "pt"})
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for name, expected in ((stem, wanted[f"{stem}.weight"] * factors[order]), ("model.layers.0.mlp.up_proj", None)):
        expected = wanted[f"{name}.weight"] if expected is None else expected
        np.testing.assert_allclose(checkpoint.tensor(f"{name}.weight"), expected, rtol=1e-6, atol=1e-9)
    assert checkpoint.quantized_blocks(f"{stem}.weight") is None


@pytest.mark.parametrize("case", BROKEN)
def test_tensors_that_do_not_fit_each_other_are_refused_by_name(save_llama: Any, tmp_path: Path, case: str) -> None:
    name, part, change, told = BROKEN[case]
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, name)
    path, module = tmp_path / "model.safetensors", "model.layers.1.self_attn.q_proj"
    tensors = load_file(path)
    changed = change(tensors.pop(f"{module}.{part}", np.zeros(0)))
    if changed is not None:
        tensors[f"{module}.{part}"] = np.ascontiguousarray(changed)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=told):
        HuggingFaceCheckpoint(tmp_path).tensor(f"{module}.weight")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "quant_method 'gptq', bits 3"),
        (
            {"quantization_config": {"quant_method": "vptq", "config_for_layers": {}}},
            "quant_method 'vptq'",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
            "quant_method 'compressed-tensors', format 'float-quantized'",
        ),
        ({"quantization": "nonsense"}, "quantization_config"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "format": "marlin"}},
            "quant_method 'gptq', bits 4, format 'marlin'",
        ),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemv"}},
            "quant_method 'awq', bits 4, version 'gemv'",
        ),
        ({"quantization_config": {"quant_method": ["gptq"], "bits": 4}}, r"quant_method \['gptq'\], bits 4"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": 4}}},
            "quant_method 'compressed-tensors'",
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": 4}},
                }
            },
            "quant_method 'compressed-tensors'",
        ),
        ({"quantization_config": ["nonsense"]}, "quantization_config"),
    ],
)
def test_other_kinds_are_refused_with_those_that_are_read(
    save_llama: Any, tmp_path: Path, values: dict[str, object], told: str
) -> None:
    save_llama(tmp_path)
    change_json(tmp_path / "config.json", **values)
    message = rf"the weights are quantized \({told}\), in a way that is not supported\. Supported: gptq in 2, 4 and 8"
    with pytest.raises(CheckpointError, match=message):
        HuggingFaceCheckpoint(tmp_path)

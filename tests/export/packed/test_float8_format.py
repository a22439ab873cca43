"""Checkpoints whose matrices have 8 bits and scales beside them, written as PyTorch and transformers have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantized_folders import Tensors, pack_matrices, say_quantized
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from edgelm.errors import CheckpointError
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint

FLOATS = {"type": "float", "num_bits": 8, "symmetric": True}
INTEGERS = {"type": "int", "num_bits": 8, "symmetric": True, "strategy": "channel"}


def compressed(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": {"weights": weights}}}


# The settings of each, and of what a scale is: rows and columns, where 0 is all.
FORMATS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "fp8 in blocks": ({"quant_method": "fp8", "weight_block_size": [16, 32]}, (16, 32)),
    # Which transformers computes with, and does not take apart (it divides by the number of scales).
    "fp8 in blocks that do not divide a matrix": ({"quant_method": "fp8", "weight_block_size": [48, 24]}, (48, 24)),
    "fp8, one scale a matrix": (
        {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}, (0, 0),
    ),
    "fp8 as AutoFP8 wrote it": (
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, (0, 0),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, (1, 0)),
    "float-quantized, a scale a row": (compressed("float-quantized", FLOATS | {"strategy": "channel"}), (1, 0)),
    "float-quantized, one scale a matrix": (compressed("float-quantized", FLOATS | {"strategy": "tensor"}), (0, 0)),
    "float-quantized in blocks": (
        compressed("float-quantized", FLOATS | {"strategy": "block", "block_structure": [32, 48]}), (32, 48),
    ),
    "int-quantized": (compressed("int-quantized", INTEGERS), (1, 0)),
}  # fmt: skip


def quantize_folder(folder: Path, name: str) -> Tensors:
    settings, (rows, columns) = FORMATS[name]
    is_first_form, is_static = "ignored_layers" in settings, settings.get("activation_scheme") == "static"
    suffix = "weight_scale_inv" if settings["quant_method"] == "fp8" and not is_first_form else "weight_scale"
    is_integer = name == "int-quantized"

    def pack(stem: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        N, K = weight.shape
        sizes = rows or N, columns or K
        padded = torch.nn.functional.pad(weight, (0, -K % sizes[1], 0, -N % sizes[0]))
        blocks = padded.unflatten(1, (-1, sizes[1])).unflatten(0, (-1, sizes[0]))
        scales = blocks.abs().amax((1, 3), keepdim=True) / (127 if is_integer else 448)
        steps = blocks / scales
        stored = steps.round().to(torch.int8) if is_integer else steps.to(torch.float8_e4m3fn)
        parts = {f"{stem}.weight": stored.flatten(2).flatten(0, 1)[:N, :K]}
        if is_static:
            parts[f"{stem}.{'input' if is_first_form else 'activation'}_scale"] = torch.tensor(0.5)
            parts[f"{stem}.{suffix}"] = scales.reshape(())
        else:
            parts[f"{stem}.{suffix}"] = scales.flatten() if rows == columns == 0 else scales[:, 0, :, 0]
        return parts, (stored.float() * scales).flatten(2).flatten(0, 1)[:N, :K]

    return pack_matrices(folder, settings, pack)


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_is_read_as_what_it_stands_for(save_llama: Any, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, name)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)
        np.testing.assert_array_equal(checkpoint.rows(key, 3, 7), expected.numpy()[3:7], err_msg=key)
        blocks = checkpoint.quantized_blocks(key)
        if name != "int-quantized":
            assert blocks is None
            continue
        assert blocks is not None
        np.testing.assert_array_equal((blocks.values * blocks.scales[..., None]).reshape(expected.shape), expected)
    type_ = "INT8" if name == "int-quantized" else "FP8"
    assert checkpoint.stored_type("model.layers.0.mlp.up_proj.weight") == type_
    assert checkpoint.source["tensor_types"] == sorted(["F32", type_])


@pytest.mark.parametrize("name", ["fp8 in blocks", "fp8, one scale a matrix"])
def test_the_logits_are_those_of_transformers(save_llama: Any, tmp_path: Path, name: str) -> None:
    save_llama(tmp_path, intermediate_size=96)
    quantize_folder(tmp_path, name)
    settings = FORMATS[name][0] | {"dequantize": True}
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=FineGrainedFP8Config(**settings), dtype=torch.float32
    )
    ids = list(range(3, 40))
    with torch.no_grad():
        expected_TV = theirs(torch.tensor([ids])).logits[0].numpy()
    (ours_TV,) = reference_logits(HuggingFaceCheckpoint(tmp_path), [ids])
    np.testing.assert_allclose(ours_TV, expected_TV, rtol=0, atol=1e-4)


def test_integers_are_kept_on_their_grid_and_floats_are_rounded_to_8_bits(save_llama: Any, tmp_path: Path) -> None:
    for name in ("int-quantized", "fp8 in blocks"):
        folder = tmp_path / name
        save_llama(folder, intermediate_size=128)
        wanted = quantize_folder(folder, name)
        export_package(HuggingFaceCheckpoint(folder), folder / "package", "keep", name="tiny")
        with PackageCheckpoint(folder / "package") as package:
            for key, expected in wanted.items():
                error = np.abs(package.tensor(key) - expected.numpy()).max() / expected.abs().max().item()
                # Half a step of 127 at most. Scales have 16 bits on the disk.
                assert error <= (1e-3 if name == "int-quantized" else 0.5 / 127 + 1e-3), key
    import_checkpoint(tmp_path / "fp8 in blocks", tmp_path / "ours")
    imported = HuggingFaceCheckpoint(tmp_path / "ours")
    for key, expected in wanted.items():
        np.testing.assert_array_equal(imported.tensor(key), expected.numpy(), err_msg=key)


def test_what_does_not_fit_is_named(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path / "whole", intermediate_size=128)
    quantize_folder(tmp_path / "whole", "fp8 in blocks")
    tensors = load_file(tmp_path / "whole/model.safetensors")
    values = json.loads((tmp_path / "whole/config.json").read_text())
    stem = "model.layers.0.mlp.up_proj"
    settings = values["quantization_config"]
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
        rf"{stem}.weight_scale_inv is \[3, 3\], which fits no matrix of": (
            {f"{stem}.weight_scale_inv": torch.ones(3, 3)},
            settings,
        ),
        rf"not supported: {stem}.weight \(F8_E5M2 instead of F8_E4M3\)": (
            {f"{stem}.weight": tensors[f"{stem}.weight"].float().to(torch.float8_e5m2)},
            settings,
        ),
        r"quantization_config's block is \[32\]; it must be two numbers above 0": (
            {},
            settings | {"weight_block_size": [32]},
        ),
        rf"not supported: {stem}.weight_scale_inv \(I32 instead of F32 or F16 or BF16\)": (
            {f"{stem}.weight_scale_inv": tensors[f"{stem}.weight_scale_inv"].to(torch.int32)},
            settings,
        ),
        "in a way that is not supported": ({}, compressed("float-quantized", FLOATS | {"num_bits": 4})),
        "in a way that is not supported.*float-quantized and int-quantized in 8": (
            {},
            compressed("int-quantized", INTEGERS | {"symmetric": False}),
        ),
    }
    for number, (message, (changed, config)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(tensors | changed, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(values | {"quantization_config": config}))
        with pytest.raises(CheckpointError, match=message):
            HuggingFaceCheckpoint(folder)


@pytest.mark.parametrize("block", [[32, 2**40], [2**40, 32], [10**400, 32]])
def test_a_block_larger_than_its_matrix_takes_no_memory(save_llama: Any, tmp_path: Path, block: list[int]) -> None:
    save_llama(tmp_path, intermediate_size=128)
    tensors, wanted = load_file(tmp_path / "model.safetensors"), {}
    for key, tensor in list(tensors.items()):
        if tensor.ndim == 2 and ".layers." in key:
            scales = torch.rand([-(-size // of) for size, of in zip(tensor.shape, block, strict=True)])
            tensors[key], tensors[f"{key}_scale_inv"] = tensor.to(torch.float8_e4m3fn), scales
            rows, columns = (min(of, size) for size, of in zip(tensor.shape, block, strict=True))
            wanted[key] = tensors[key].float() * scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "weight_block_size": block}
    say_quantized(tmp_path, settings)
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)


def test_a_file_that_was_cut_since_it_was_opened_is_named(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "fp8 in blocks")
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    name = max(checkpoint.config.tensor_shapes())  # of the last layer
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: .*Download it again"):
        checkpoint.tensor(name if ".layers." in name else "model.layers.1.mlp.up_proj.weight")


def test_a_file_in_the_place_of_another_is_read_by_its_own_header(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, "fbgemm")
    key = "model.layers.1.mlp.up_proj.weight"
    np.testing.assert_array_equal(HuggingFaceCheckpoint(tmp_path).tensor(key), wanted[key].numpy())
    path = tmp_path / "model.safetensors"
    save_file(
        {name: tensor.flip(0) for name, tensor in load_file(path).items()},
        path,
        metadata={"format": "pt", "more": "x" * 99},
    )
    np.testing.assert_array_equal(HuggingFaceCheckpoint(tmp_path).tensor(key), wanted[key].numpy()[::-1])


def test_so_are_those_of_the_text_part_of_a_model_that_reads_images(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    wanted = quantize_folder(tmp_path, "fp8, one scale a matrix")
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed | {"vision_tower.patch.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    settings = values.pop("quantization_config")
    whole = {"model_type": "mistral3", "text_config": values | {"model_type": "mistral"}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole | {"quantization_config": settings}))
    checkpoint = HuggingFaceCheckpoint(tmp_path)
    for key, expected in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensor(key), expected.numpy(), err_msg=key)


def test_a_type_that_numpy_has_not_is_no_other_error(save_llama: Any, tmp_path: Path) -> None:
    save_llama(tmp_path, intermediate_size=128)
    quantize_folder(tmp_path, "fp8 in blocks")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"] = torch.ones(3).to(torch.float8_e5m2)
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    say_quantized(tmp_path, settings)
    with pytest.raises(CheckpointError, match=r"safetensors cannot be read: numpy has no type for .*nf4, F8_E5M2\."):
        HuggingFaceCheckpoint(tmp_path)

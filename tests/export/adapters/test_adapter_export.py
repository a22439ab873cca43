"""Adapters exported for a package: what is folded, taken from a run, refused; PEFT's own sums are the oracle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import invoke
from exported_adapters import Exported, adapted_by_peft, check_beside_package, merged_logits, our_logits
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision, Rule
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ExportError
from edgelm.generation_config import GenerationConfig
from edgelm.package.manifest import Manifest, describe_file, sha256_of
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.channel_scales import CHANNEL_SCALES_FILE, ChannelScales
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint


@pytest.mark.parametrize("transforms", [(), ("smooth",)])
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("granite", {"residual_multiplier": 0.5}),
        ("stablelm", {"partial_rotary_factor": 0.5, "hidden_size": 64, "num_attention_heads": 4}),
        ("qwen2", {}),  # biases, which come behind
    ],
)
def test_what_the_exporter_folds_into_weights_is_folded_into_adapters(
    family: str,
    fields: dict[str, object],
    transforms: tuple[str, ...],
    save_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
) -> None:
    save_model(family, tmp_path / "ckpt", **fields)
    floats = replace(PRECISIONS["fp32"], transforms=transforms)
    with HuggingFaceCheckpoint(tmp_path / "ckpt") as source:
        export_package(source, tmp_path / "pkg", floats, calibration=CalibrationOptions(max_tokens=256))
    check_beside_package(adapted_by_peft(tmp_path / "ckpt"), tmp_path / "pkg", tmp_path)


def test_a_base_that_was_imported_from_the_packages_own_source_is_known(exported: Exported, tmp_path: Path) -> None:
    """`edgelm import` writes the same weights into another file, which has another hash."""
    import_checkpoint(exported.checkpoint, tmp_path / "ckpt")
    weights = tmp_path / "ckpt" / "model.safetensors"
    metadata = {"edgelm.base_sha256": sha256_of(weights), "edgelm.base_name": str(tmp_path / "ckpt")}
    peft = peft_folder(exported, tmp_path / "peft", metadata)
    assert export_adapter(peft, exported.packages["int8"], tmp_path / "adapter").notes == ()
    imported = load_file(weights)
    for others in (
        {},
        {"edgelm_source": "[]"},
        {"edgelm_source": "[" * 100_000},
        {"edgelm_source": '{"files": [{"sha256": "0"}]}'},
    ):
        save_file(imported, weights, metadata=others)
        metadata["edgelm.base_sha256"] = sha256_of(weights)
        shutil.rmtree(peft)
        peft_folder(exported, peft, metadata)
        with pytest.raises(CheckpointError, match="the package int8 was exported from others"):
            export_adapter(peft, exported.packages["int8"], tmp_path / "adapter")
    import_checkpoint(exported.checkpoint, tmp_path / "ckpt")  # no longer what the adapter learned on
    with pytest.raises(CheckpointError, match="the package int8 was exported from others"):
        export_adapter(peft, exported.packages["int8"], tmp_path / "adapter")


def peft_folder(exported: Exported, folder: Path, metadata: Mapping[str, str] | None = None, **changed: Any) -> Path:
    """Copy the adapter `values`, with other metadata and other tensors."""
    shutil.copytree(exported.adapters["values"], folder)
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights) | changed, weights, metadata=dict(metadata or {}))
    return folder


def test_the_command_takes_the_best_adapter_of_a_run(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    weights = sha256_of(exported.checkpoint / "model.safetensors")
    peft_folder(
        exported, tmp_path / "run" / "best", {"edgelm.base_sha256": weights, "edgelm.base_grid": "int4-block64"}
    )
    command = ["export-adapter", str(tmp_path / "run"), "--base", str(exported.packages["int8"])]
    result = invoke(*command, "-o", tmp_path / "mine", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["name"], facts["base"], facts["rank"], facts["alpha"]) == ("mine", "int8", 3, 6)
    assert facts["target_modules"] == ["v_proj"]
    assert facts["notes"] == [
        "The adapter learned on weights on the grid int4-block64; 2 of its 2 layers are stored otherwise in this "
        "package."
    ]
    with safe_open(tmp_path / "mine" / "adapter_model.safetensors", framework="numpy") as file:
        assert "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight" in file.keys()  # noqa: SIM118
    command = ["export-adapter", str(exported.adapters["all"]), "--base", str(exported.packages["int8"])]
    result = invoke(*command, "-o", tmp_path / "mine")  # replaces the one before
    assert result.exit_code == 0, result.output
    assert "note  Nothing tells whether the package was exported from the weights that the adapter" in result.stdout
    answer = invoke("run", exported.packages["int8"], "--raw", "The sea", "--adapter", tmp_path / "mine", "--json")
    assert answer.exit_code == 0, answer.output
    model = edgelm.load(exported.packages["int8"])
    model.load_adapter(tmp_path / "mine")
    config = GenerationConfig(max_new_tokens=1024, adapter="mine")
    assert json.loads(answer.stdout)["token_ids"] == list(model.generate("The sea", config).token_ids)


def test_projections_that_are_no_longer_one_product_are_adapted_one_by_one(exported: Exported, tmp_path: Path) -> None:
    rules = Rule(pattern="q_proj|up_proj", scheme="fp16"), Rule(pattern=".", scheme="fp32")
    with HuggingFaceCheckpoint(exported.checkpoint) as source:
        export_package(source, tmp_path / "pkg", Precision(rules=rules))
    export_adapter(exported.adapters["all"], tmp_path / "pkg", tmp_path / "adapter")
    model = edgelm.load(tmp_path / "pkg")
    model.load_adapter(tmp_path / "adapter")
    # The rounding of some weights to 16 bits. Measured: 3.7e-3.
    np.testing.assert_allclose(our_logits(model, "adapter"), merged_logits(exported, "all"), atol=1e-2, rtol=0)


def test_a_package_on_the_grid_that_an_adapter_learned_on_is_its_base(exported: Exported, tmp_path: Path) -> None:
    rules = Rule(pattern="layers", scheme="int4-block64"), Rule(pattern=".", scheme="int8-block64")
    with HuggingFaceCheckpoint(exported.checkpoint) as source:
        export_package(source, tmp_path / "pkg", Precision(rules=rules, perplexity_bound=100.0))
    weights = sha256_of(exported.checkpoint / "model.safetensors")
    metadata = {"edgelm.base_sha256": weights, "edgelm.base_grid": "int4-block64"}
    trained = peft_folder(exported, tmp_path / "qlora", metadata)
    assert export_adapter(trained, tmp_path / "pkg", tmp_path / "adapter").notes == ()


def test_an_adapter_that_does_not_go_with_the_package_is_refused(exported: Exported, tmp_path: Path) -> None:
    package = exported.packages["fp32"]
    others = peft_folder(exported, tmp_path / "others", {"edgelm.base_sha256": "0" * 64, "edgelm.base_name": "x"})
    with pytest.raises(
        CheckpointError, match=r"was trained on x \(weights 0{12}…\); the package fp32 was exported from"
    ):
        export_adapter(others, package, tmp_path / "out")
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_{}.weight"
    wide = peft_folder(exported, tmp_path / "wide", **{name.format("A"): np.zeros((3, 31), np.float32)})
    with pytest.raises(CheckpointError, match=r"v_proj: it is \[16, 32\], the adapter's A and B are \[3, 31\]"):
        export_adapter(wide, package, tmp_path / "out")
    changed = {name.format("A"): np.zeros((600, 32), np.float32), name.format("B"): np.zeros((16, 600), np.float32)}
    with pytest.raises(CheckpointError, match=r"v_proj: rank 600, and ranks are 1 to 512"):
        export_adapter(peft_folder(exported, tmp_path / "thick", **changed), package, tmp_path / "out")
    head = {f"base_model.model.lm_head.lora_{part}.weight": np.zeros((3, 3), np.float32) for part in "AB"}
    elsewhere = r"\nName the package .* into its base \(edgelm merge\), or merge it where it was trained \(merge_and"
    with pytest.raises(CheckpointError, match=rf"lm_head: there is no such projection{elsewhere}"):
        export_adapter(peft_folder(exported, tmp_path / "head", **head), package, tmp_path / "out")
    broken = peft_folder(exported, tmp_path / "nan", **{name.format("A"): np.full((3, 32), np.nan, np.float32)})
    with pytest.raises(CheckpointError, match=r"A of model\..*v_proj has NaN or infinite values; the adapter is"):
        export_adapter(broken, package, tmp_path / "out")
    (broken / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be read: .* Copy it again\."):
        export_adapter(broken, package, tmp_path / "out")
    export_adapter(exported.adapters["values"], package, tmp_path / "exported")
    with pytest.raises(CheckpointError, match=r"exported is an adapter that was exported, for one package\. Name what"):
        export_adapter(tmp_path / "exported", package, tmp_path / "out")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match=r"file/out cannot be written: .* What was there before is as it was\."):
        export_adapter(exported.adapters["values"], package, tmp_path / "file" / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("keep")
    with pytest.raises(ExportError, match=r"out is not replaced: it exists and is not an exported adapter\. Choose"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(32), r"F32 \[32\]"),
        (torch.ones(()), r"F32 \[\]"),
        (torch.ones(3, 32, 1), r"F32 \[3, 32, 1\]"),
        (torch.ones(0, 32), r"F32 \[0, 32\]"),
        (torch.ones(3, 32, dtype=torch.int8), r"I8 \[3, 32\]"),
        (torch.ones(3, 32).to(torch.float8_e4m3fn), r"F8_E4M3 \[3, 32\]"),
    ],
)
def test_an_adapter_of_other_tensors_than_matrices_of_floats_is_refused(
    exported: Exported, tmp_path: Path, tensor: torch.Tensor, told: str
) -> None:
    adapter = peft_folder(exported, tmp_path / "adapter")
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    path = adapter / "adapter_model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path) | {name: tensor}, path)
    with pytest.raises(CheckpointError, match=rf"v_proj\.lora_A\.weight is {told}; read are matrices with a row and"):
        export_adapter(adapter, exported.packages["fp32"], tmp_path / "out")


def test_a_base_whose_name_no_file_has_is_one_that_is_gone(exported: Exported, tmp_path: Path) -> None:
    base = {"edgelm.base_sha256": "0" * 64, "edgelm.base_name": "x" * 5000}
    with pytest.raises(CheckpointError, match=r"was trained on xxx"):
        export_adapter(peft_folder(exported, tmp_path / "others", base), exported.packages["fp32"], tmp_path / "out")


def test_a_package_that_takes_no_adapters_says_so(exported: Exported, tmp_path: Path) -> None:
    package = shutil.copytree(exported.packages["fp32"], tmp_path / "pkg")
    manifest = Manifest.load(package)
    replace(manifest, recipe=({"transform": "rotate"}, *manifest.recipe)).save(package)
    with pytest.raises(ExportError, match=r"pkg has rotated weights, so what its layers read is not what"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")
    replace(manifest, recipe=({"transform": "smooth"}, *manifest.recipe)).save(package)
    with pytest.raises(ExportError, match=r"pkg has smooth folded into its weights, and no channel_scales"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")
    for number, precision in enumerate(("int8", "int8-wide")):
        with PackageCheckpoint(package if number else exported.packages["int8"]) as source:
            package = tmp_path / precision
            export_package(source, package, precision)
        with pytest.raises(ExportError, match=rf"{precision} was made of a package that has smooth folded into its"):
            export_adapter(exported.adapters["values"], package, tmp_path / "out")
    config = ModelConfig.load(package)
    heads = replace(config, num_key_value_heads=config.num_attention_heads)
    encoder = replace(heads, position="learned")
    changed = replace(heads, encoder=encoder, decoder_start_token_id=0)
    (package / "config.json").write_text(json.dumps({"edgelm": changed.to_dict()}))
    with pytest.raises(ExportError, match=r"is a model with an encoder, which takes no adapters beside it\. Merge"):
        export_adapter(exported.adapters["values"], package, tmp_path / "out")
    with HuggingFaceCheckpoint(exported.checkpoint) as source:
        export_package(source, tmp_path / "standard", PRECISIONS["fp32"].with_standard_operators())
    with pytest.raises(ExportError, match=r"standard is in operators of the ONNX standard, which takes no adapters"):
        export_adapter(exported.adapters["values"], tmp_path / "standard", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "scales", "message"),
    [
        (
            "model.layers.0.input_layernorm",
            np.ones((1, 31), np.float32),
            r"shape \[1, 31\], from 1 up; by config",
        ),
        (
            "model.layers.0.input_layernorm",
            np.zeros((1, 32), np.float32),
            r"shape \[1, 32\], from 0 up; by config",
        ),
        ("model.layers.9.input_layernorm", np.ones((1, 32), np.float32), r"layers\.9\.input_layernorm of the shape"),
    ],
)
def test_scales_that_do_not_fit_the_package_are_refused(
    name: str, scales: NDArray[np.float32], message: str, exported: Exported, tmp_path: Path
) -> None:
    package = shutil.copytree(exported.packages["int8"], tmp_path / "pkg")
    save_file({name: scales}, package / CHANNEL_SCALES_FILE)
    manifest = Manifest.load(package)
    files = tuple(describe_file(package / entry.path) for entry in manifest.files)
    manifest = replace(manifest, files=files)
    manifest.save(package)
    with pytest.raises(ExportError, match=message):
        ChannelScales.load(package, manifest, ModelConfig.load(package))

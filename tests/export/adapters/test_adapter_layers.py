"""Adapters that PEFT trained on families' published folders, whose layers have other names there, or another order.

The oracle is PEFT's own model of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from config_values import model_config
from exported_adapters import IDS, adapted_by_peft, check_beside_package, our_logits
from family_models import MODELS, randomize
from json_files import change_json
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel, PreTrainedTokenizerFast
from unchecked_export import export_unchecked

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, PackageError
from edgelm.package.adapter import AdapterManifest
from edgelm.package.manifest import describe_file
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.adapters.adapter_layers import layers_of_package
from edgelm_export.checkpoints.tensor_map import CANONICAL
from edgelm_export.importer import import_checkpoint
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.merge import Merged, merge_adapter

SaveModel = Callable[..., PreTrainedModel]

PUBLISHED = (
    "phi3",  # queries, keys and values in one matrix, gates and values in another
    "gpt2",  # matrices the other way round
    "gpt_neox",  # queries, keys and values of each head side by side
    "bloom",
    "mpt",
    "gpt_bigcode",
    "gpt_neo",
    "starcoder2",
    "falcon, two key heads, untied, another base",  # the query heads of each key head, then that, then its values
    "codegen",  # by quarters of the heads, which turn by neighbours
    "gptj",
    "glm",
    "granitemoehybrid with Mamba",
    "qwen3_5",  # queries with their gates, under the name of queries
    "cohere with norms of heads",
    "nanochat",
)


def published(name: str, folder: Path, save_model: SaveModel) -> Path:
    """Save a model as its family is published, and a package of it; return its folder."""
    family, fields = MODELS[name]
    save_model(family, folder / "hf", **fields)
    with HuggingFaceCheckpoint(folder / "hf") as source:
        export_unchecked(source, folder / "pkg", "fp32")
    return folder / "hf"


def merged_into_import(adapted: PeftModel, folder: Path) -> Merged:
    """Merge an adapter into what import makes of the published folder, and compare what they compute."""
    adapted.save_pretrained(folder / "peft")
    import_checkpoint(folder / "hf", folder / "ckpt")
    merged = merge_adapter(folder / "peft", folder / "merged", base=folder / "ckpt")
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits
        before, ours = (load_checkpoint(folder / name).eval()(torch.tensor([IDS])) for name in ("ckpt", "merged"))
    assert (before - expected).abs().max() > 0.1
    # Sums in another order. Measured: 2e-5.
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    return merged


def check_same_matrices(one: Path, other: Path) -> None:
    """Compare two exported adapters."""
    found, expected = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_of_a_published_folder_are_found_in_its_package(
    name: str, save_model: SaveModel, tmp_path: Path
) -> None:
    base = published(name, tmp_path, save_model)
    check_beside_package(adapted_by_peft(base), tmp_path / "pkg", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "phi3",
        "gpt2",
        "gpt_neox",
        "codegen",
        "qwen3_5",
        "cohere with norms of heads",
        "nemotron_h with experts",
        "olmo_hybrid",
    ],
)
def test_such_layers_are_merged_into_a_checkpoint_of_ours(name: str, save_model: SaveModel, tmp_path: Path) -> None:
    family, fields = MODELS[name]
    save_model(family, tmp_path / "hf", **fields)
    changes = {"target_modules": NAMES_IN_TRANSFORMERS[name]} if name in NAMES_IN_TRANSFORMERS else {}
    merged = merged_into_import(adapted_by_peft(tmp_path / "hf", **changes), tmp_path)
    assert not merged.checked


def test_without_an_adapter_a_package_with_biases_has_the_bits_of_itself_alone(
    save_model: SaveModel, tmp_path: Path
) -> None:
    """ONNX Runtime joins biases to products by integers, and some to the gelu behind them."""
    save_model("gpt2", tmp_path / "hf")
    with HuggingFaceCheckpoint(tmp_path / "hf") as source:
        export_unchecked(source, tmp_path / "pkg", "int8")
    adapted_by_peft(tmp_path / "hf").save_pretrained(tmp_path / "peft")
    export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "adapter")
    model = edgelm.load(tmp_path / "pkg")
    alone = our_logits(model, None)
    model.load_adapter(tmp_path / "adapter")
    np.testing.assert_array_equal(our_logits(model, None), alone)


# Models with experts, and what beside those has an adapter.
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
BESIDE_EXPERTS: dict[str, Any] = {
    "qwen3_moe": _ATTENTION,
    "olmoe": _ATTENTION,
    "gpt_oss": _ATTENTION,
    "granitemoe": [*_ATTENTION, "layer"],  # the router, by which others are chosen
    "qwen2_moe": r".*(self_attn|shared_expert)\.\w+_proj",
    "gemma4_text with experts, shared keys, features": _ATTENTION,  # each of which is products of its own
}


@pytest.mark.parametrize("name", BESIDE_EXPERTS)
def test_beside_experts_all_other_layers_take_adapters(name: str, save_model: SaveModel, tmp_path: Path) -> None:
    base = published(name, tmp_path, save_model)
    check_beside_package(adapted_by_peft(base, target_modules=BESIDE_EXPERTS[name]), tmp_path / "pkg", tmp_path)


# What transformers calls otherwise than the folders that it reads and writes.
NAMES_IN_TRANSFORMERS = {
    "lara_mini": r".*(in_proj_\w+|out_proj|q_proj|o_proj|shared_expert\.\w+_proj)",
    "laguna": r".*(q_proj|g_proj|shared_experts\.\w+_proj)",
    "lfm3": ["q_proj", "g_proj"],
    "nemotron_h with experts": ["in_proj", "q_proj", "o_proj", "up_proj", "down_proj"],
    "olmo_hybrid": "all-linear",
    "olmo_hybrid, rates up to one, rope, biases, tied": r".*linear_attn\.[kv]_proj",
}


@pytest.mark.parametrize("name", NAMES_IN_TRANSFORMERS)
def test_layers_that_transformers_calls_otherwise_than_its_folders_are_found(
    name: str, save_model: SaveModel, tmp_path: Path
) -> None:
    base = published(name, tmp_path, save_model)
    adapted = adapted_by_peft(base, target_modules=NAMES_IN_TRANSFORMERS[name])
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)


# Projections of what is before all layers, or behind them.
OUTSIDE_LAYERS = {
    "gemma3n_text": r".*(altup_\w*projections\.\d|per_layer_model_projection|q_proj)",
    "gemma4_text": "all-linear",
    "modernbert-decoder": "all-linear",
}


@pytest.mark.parametrize("name", OUTSIDE_LAYERS)
def test_projections_outside_of_all_layers_take_adapters_too(name: str, save_model: SaveModel, tmp_path: Path) -> None:
    base = published(name, tmp_path, save_model)
    adapted = adapted_by_peft(base, target_modules=OUTSIDE_LAYERS[name])
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)
    assert not any(part.isdecimal() for part in AdapterManifest.load(tmp_path / "adapter").target_modules)


def test_experts_themselves_take_none(save_model: SaveModel, tmp_path: Path) -> None:
    base = published("qwen3_moe", tmp_path, save_model)
    adapted_by_peft(base, target_modules=_ATTENTION).save_pretrained(tmp_path / "peft")
    weights = load_file(tmp_path / "peft/adapter_model.safetensors")
    layer = "base_model.model.model.layers.0.mlp.experts.1.gate_proj"  # as older versions of transformers have them
    weights |= {f"{layer}.lora_A.weight": np.ones((3, 64), "f4"), f"{layer}.lora_B.weight": np.ones((48, 3), "f4")}
    save_file(weights, tmp_path / "peft/adapter_model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"\n  model\.layers\.0\.mlp\.experts\.1\.gate_proj: experts take no adapter .*\n.*merge_and_unload and",
    ):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")
    adapted = adapted_by_peft(base, target_modules=_ATTENTION, target_parameters=["mlp.experts.down_proj"])
    adapted.save_pretrained(tmp_path / "peft")
    with pytest.raises(CheckpointError, match=r"has target_parameters = .* merge it where it was trained"):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")


def test_learned_positions_take_none(tmp_path: Path) -> None:
    """A table, whose rows are looked up: the graph has no product to stand beside."""
    config = replace(model_config(), position="learned")
    N, D = config.tensor_shapes()["model.embed_positions.weight"]
    matrices = {"model.embed_positions": (np.ones((3, D), np.float32), np.ones((N, 3), np.float32))}
    with pytest.raises(CheckpointError, match="embed_positions: there is no such projection"):
        layers_of_package(matrices, config, CANONICAL, tmp_path)


def test_nor_does_a_file_made_by_hand_put_one_there(save_model: SaveModel, tmp_path: Path) -> None:
    base = published("gemma4_text with experts, shared keys, features", tmp_path, save_model)
    adapted = adapted_by_peft(base, target_modules=["down_proj"])
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)
    shapes = ModelConfig.load(tmp_path / "pkg").tensor_shapes()
    name, (N, D) = next((name, shape) for name, shape in shapes.items() if ".experts.0.down_proj" in name)
    layer, weights = f"base_model.model.{name.removesuffix('.weight')}", tmp_path / "adapter/adapter_model.safetensors"
    of_expert = {"A": np.ones((3, D), "f4"), "B": np.ones((N, 3), "f4")}
    save_file({f"{layer}.lora_{part}.weight": matrix for part, matrix in of_expert.items()}, weights)
    replace(AdapterManifest.load(tmp_path / "adapter"), file=describe_file(weights)).save(tmp_path / "adapter")
    with pytest.raises(PackageError, match=r"no product for .*\.experts\.0\.down_proj, which the adapter adapter"):
        edgelm.load(tmp_path / "pkg").load_adapter(tmp_path / "adapter")


def test_what_is_folded_into_a_package_and_alphas_of_layers_are_those_of_the_parts(
    save_model: SaveModel, tmp_path: Path
) -> None:
    save_model("phi3", tmp_path / "hf", pad_token_id=0)
    with HuggingFaceCheckpoint(tmp_path / "hf") as source:
        smooth = replace(PRECISIONS["fp32"], transforms=("smooth",))
        export_unchecked(source, tmp_path / "pkg", smooth, calibration=CalibrationOptions(max_tokens=256))
    adapted = adapted_by_peft(tmp_path / "hf", alpha_pattern={"qkv_proj": 2, "gate_up_proj": 20})
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)


def test_where_names_are_the_same_the_base_tells_in_which_order_rows_are(save_model: SaveModel, tmp_path: Path) -> None:
    """A Helium turns neighbouring dimensions; import puts their rows apart, and PEFT knows nothing of it."""
    save_model("helium", tmp_path / "hf", head_dim=16)
    with HuggingFaceCheckpoint(tmp_path / "hf") as source:
        export_unchecked(source, tmp_path / "pkg", "fp32")
    adapted = adapted_by_peft(tmp_path / "hf", target_modules=["q_proj", "o_proj"])
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)
    of_folder = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert "q_proj were put in edgelm's order" in (tmp_path / "adapter/adapter.json").read_text(encoding="utf-8")
    settings = tmp_path / "peft/adapter_config.json"
    for name in (None, "", str(tmp_path / "gone"), "../gone", "gone"):
        change_json(settings, base_model_name_or_path=name)
        with pytest.raises(
            CheckpointError,
            match=r"that a helium is published in, the rows of q_proj stand .*(_path|which) .*, or merge",
        ):
            export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")
    change_json(settings, base_model_name_or_path="kyutai/helium-1-2b")
    export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "adapter")
    of_hub = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert all(np.array_equal(of_hub[name], tensor) for name, tensor in of_folder.items())
    change_json(settings, target_modules=["o_proj"], base_model_name_or_path=None)
    weights = load_file(tmp_path / "peft/adapter_model.safetensors")
    unmoved = {name: tensor for name, tensor in weights.items() if "q_proj" not in name}
    save_file(unmoved, tmp_path / "peft/adapter_model.safetensors")
    export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "adapter")
    # transformers opens what import writes as a Llama, and its rows are ours.
    import_checkpoint(tmp_path / "hf", tmp_path / "ckpt")
    adapted = adapted_by_peft(tmp_path / "ckpt", target_modules=["q_proj", "o_proj"])
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)


def test_an_adapter_of_an_imported_folder_has_our_names_whatever_its_family_has(
    save_model: SaveModel, tmp_path: Path
) -> None:
    published("phi3", tmp_path, save_model)
    import_checkpoint(tmp_path / "hf", tmp_path / "ckpt")
    adapted = adapted_by_peft(tmp_path / "ckpt")
    assert any(name.endswith("q_proj.lora_B.default.weight") for name, _ in adapted.named_parameters())
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)


def test_mlx_calls_layers_of_some_families_otherwise_again(save_model: SaveModel, tmp_path: Path) -> None:
    base = published("gpt2", tmp_path, save_model)
    adapted_by_peft(base, r=3, lora_alpha=6).save_pretrained(tmp_path / "peft")
    export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "adapter")
    theirs = load_file(tmp_path / "peft/adapter_model.safetensors")
    (tmp_path / "mlx").mkdir()
    settings = {"fine_tune_type": "lora", "model": "x/gpt2", "lora_parameters": {"rank": 3, "dropout": 0.0, "scale": 2}}
    (tmp_path / "mlx/adapter_config.json").write_text(json.dumps(settings))
    names = {name: name.removeprefix("base_model.model.").replace("transformer.", "model.") for name in theirs}
    ends = {".lora_A.weight": ".lora_a", ".lora_B.weight": ".lora_b"}
    mlx = {}
    for name, tensor in theirs.items():
        for end, of_mlx in ends.items():
            if name.endswith(end):
                mlx[names[name].removesuffix(end) + of_mlx] = np.ascontiguousarray(tensor.T)
    save_file(mlx, tmp_path / "mlx/adapters.safetensors")
    export_adapter(tmp_path / "mlx", tmp_path / "pkg", tmp_path / "of-mlx")
    check_same_matrices(tmp_path / "of-mlx", tmp_path / "adapter")


def test_layers_that_are_one_product_here_have_a_rank_together(save_model: SaveModel, tmp_path: Path) -> None:
    base = published("olmo_hybrid", tmp_path, save_model)
    adapted_by_peft(base, r=171, target_modules=["q_proj", "k_proj", "v_proj"]).save_pretrained(tmp_path / "peft")
    with pytest.raises(CheckpointError, match=r"in_proj_qkv: rank 513, and ranks are 1 to 512 for queries, keys and"):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")
    path = tmp_path / "peft/adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("linear_attn.q_proj.lora_B.weight"))
    save_file(tensors | {name: tensors[name][1:].copy()}, path)
    with pytest.raises(CheckpointError, match=r"linear_attn\.q_proj: there is no such projection"):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")


def test_layers_that_a_package_has_in_no_form_for_adapters_are_named_as_training_named_them(
    save_model: SaveModel, tmp_path: Path
) -> None:
    base = published("gpt_neox", tmp_path, save_model)
    adapted_by_peft(base, target_modules=["query_key_value"]).save_pretrained(tmp_path / "peft")
    weights = load_file(tmp_path / "peft/adapter_model.safetensors")
    layer = "base_model.model.gpt_neox.layers.0.attention.query_key_value.lora_B.weight"
    changed = {layer: weights[layer][:-1]}
    changed |= {f"base_model.model.embed_out.lora_{part}.weight": np.zeros((3, 3), np.float32) for part in "AB"}
    save_file(weights | changed, tmp_path / "peft/adapter_model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"\n  embed_out: there is no .*\n  gpt_neox\.layers\.0\.attention\.query_key_value: it is \[192, 64\]",
    ):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")


def test_a_layer_whose_columns_stand_otherwise_is_refused(save_model: SaveModel, tmp_path: Path) -> None:
    base = published("youtu", tmp_path, save_model)
    adapted_by_peft(base).save_pretrained(tmp_path / "peft")
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.self_attn\.kv_b_proj: its columns stand otherwise in edgelm"
    ):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")
    others = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = adapted_by_peft(base, target_modules=others)
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)


_TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
# What reads images too: the text part, and the other.
_WHOLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"head_dim": 32, "sliding_window": 9}, _VISION | {"model_type": "siglip_vision_model"}),
    "smolvlm": ({"model_type": "llama"}, _VISION),
    "glm4v": (  # gates and values in one matrix, and heads that turn by neighbours
        {
            "model_type": "glm4v_text", "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5,
            },
        },
        {
            "depth": 1, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "hidden_size": 32,
            "image_size": 28,
        },
    ),
    "mllama": (
        {"num_hidden_layers": 5, "cross_attention_layers": [1, 3]},
        _VISION | {
            "attention_heads": 2, "num_global_layers": 1, "vision_output_dim": 64, "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1,
        },
    ),
}  # fmt: skip


def adapted_whole(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast, targets: str) -> PeftModel:
    """Save a random model that reads images too, and a package of its text part; put an adapter on it."""
    text, vision = _WHOLE[name]
    config = AutoConfig.for_model(name, text_config=_TEXT | text, vision_config=vision, pad_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder / "hf")
    tokenizer.save_pretrained(folder / "hf")
    with HuggingFaceCheckpoint(folder / "hf") as source:
        export_unchecked(source, folder / "pkg", "fp32")
    model = AutoModelForMultimodalLM.from_pretrained(folder / "hf")
    return get_peft_model(model, LoraConfig(r=3, target_modules=targets, init_lora_weights=False)).eval()


@pytest.mark.parametrize("name", ["gemma3", "smolvlm", "glm4v"])
def test_an_adapter_of_a_model_that_reads_images_too_goes_with_its_text_part(
    name: str, bpe_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    adapted = adapted_whole(name, tmp_path, bpe_tokenizer, r".*\.(\w+_proj|qkv|fc1)")
    weights = {layer for layer, _ in adapted.named_parameters() if "lora_A" in layer}
    others = sum("language_model" not in layer and "text_model" not in layer for layer in weights)
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)
    notes = json.loads((tmp_path / "adapter/adapter.json").read_text(encoding="utf-8"))["notes"]
    assert others > 0
    left_out = f"Layers of what reads images or sound, which the text part has not, were left out: {others} of the"
    assert left_out in notes[1]
    assert merged_into_import(adapted, tmp_path).notes[0].startswith(left_out)


def test_as_older_versions_of_transformers_call_them_they_are_the_same(
    bpe_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    adapted = adapted_whole("gemma3", tmp_path, bpe_tokenizer, r".*language_model.*_proj")
    check_beside_package(adapted, tmp_path / "pkg", tmp_path)
    of_text = load_file(tmp_path / "peft/adapter_model.safetensors")
    older = {name.replace("model.language_model.", "language_model.model."): tensor for name, tensor in of_text.items()}
    assert not older.keys() & of_text.keys()
    save_file(older, tmp_path / "peft/adapter_model.safetensors")
    export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "older")
    check_same_matrices(tmp_path / "older", tmp_path / "adapter")


def test_where_layers_are_counted_anew_an_adapter_of_the_whole_model_is_refused(
    bpe_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    adapted = adapted_whole("mllama", tmp_path, bpe_tokenizer, r".*language_model.*self_attn\.q_proj")
    adapted.save_pretrained(tmp_path / "peft")
    with pytest.raises(CheckpointError, match=r"language_model\.layers\.0\.self_attn\.q_proj: there is no such proj"):
        export_adapter(tmp_path / "peft", tmp_path / "pkg", tmp_path / "out")

"""Gemma 3n: several residual streams, a thin way beside attention, and gates of which most are nothing."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from config_values import SIZES
from family_models import GEMMA3N, MODELS, randomize
from package_logits import distance_to_source, logits_of
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma3n import modeling_gemma3n
from unchecked_export import export_unchecked

import edgelm
from edgelm import GenerationConfig, SessionOptions
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ExportError
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.adapters.adapter_exporter import export_adapter
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gemma3n import GEMMA3N as ROW
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.channel_scales import ScaledCheckpoint
from edgelm_export.quantize.folding import choose_scales
from edgelm_export.quantize.rotation import RotatedCheckpoint
from edgelm_export.quantize.sensitivity import measure_sensitivity, tensor_groups
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.gguf_checkpoint import GGUFCheckpoint
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.package_checkpoint import PackageCheckpoint
from edgelm_training.adaptation.lora import linear_names
from edgelm_training.checkpoints.checkpoint import load_checkpoint
from edgelm_training.evaluation.inspection import inspect_text

SaveModel = Callable[..., PreTrainedModel]

IDS = np.random.default_rng(0).integers(3, 320, 60).tolist()
TWO_STREAMS = next(changes for name, (_, changes) in MODELS.items() if name.startswith("gemma3n_text, two streams"))
KINDS = {"four streams": GEMMA3N, "two streams": TWO_STREAMS}
VALUES = SIZES | GEMMA3N | {"model_type": "gemma3n_text"}


@pytest.fixture(params=["four streams"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, save_model: SaveModel) -> HuggingFaceCheckpoint:
    save_model("gemma3n_text", tmp_path / "hf", **KINDS[request.param])
    path = tmp_path / "hf/model.safetensors"
    # Scores of heads of such a norm are as large as their size: with its square root, each token looks at one alone.
    save_file({name: x * (0.2 if "q_norm" in name else 1) for name, x in load_file(path).items()}, path)
    return HuggingFaceCheckpoint(tmp_path / "hf")


# Relative to the logits of random weights. Seen: up to 0.040, 0.25, 0.26 and 0.0015.
@pytest.mark.parametrize(
    ("checkpoint", "precision", "bound"),
    [
        *(("four streams", *row) for row in (("int8", 0.1), ("int4", 0.4), ("int4, calibrated", 0.4), ("fp16", 0.005))),
        ("two streams", "int4, calibrated", 0.4),
    ],
    indirect=["checkpoint"],
)
def test_a_quantized_package_stays_near_its_source(
    precision: str, bound: float, checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    chosen, options = PRECISIONS[precision.split(",")[0]], None
    if "calibrated" in precision:
        chosen, options = chosen.calibrated(), CalibrationOptions(max_tokens=128)
    export_unchecked(checkpoint, tmp_path / "package", chosen, calibration=options)
    assert distance_to_source(tmp_path / "package", checkpoint, IDS) < bound
    with PackageCheckpoint(tmp_path / "package") as package:
        kept = {package.stored_type(name) for name in checkpoint.config.tensor_shapes() if ".altup." in name}
        assert kept == {"F32"}


def test_batches_guesses_and_reused_beginnings_give_the_answers_of_each_alone(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path
) -> None:
    export_unchecked(checkpoint, tmp_path / "package", "int8")
    model = edgelm.load(tmp_path / "package", SessionOptions(threads=1))
    greedy = GenerationConfig(max_new_tokens=20, temperature=0.0, ignore_eos=True)
    prompts = [IDS, IDS[:40], [*IDS[:32], *IDS[50:60]]]
    model.prefixes = PrefixCache(model.config, 0)
    expected = [model.generate(prompt, greedy).token_ids for prompt in prompts]
    model.prefixes = PrefixCache(model.config)
    assert [reply.token_ids for reply in model.generate_batch(prompts, greedy)] == expected
    again = [model.generate(prompt, greedy) for prompt in prompts]
    assert [reply.token_ids for reply in again] == expected
    assert again[0].usage.cached_tokens == 32
    guessed = greedy.replace(speculation="prompt_lookup", exact_speculation=True)
    assert [model.generate(prompt, guessed).token_ids for prompt in prompts] == expected


def test_keys_and_values_are_kept_in_int8(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    chosen = PRECISIONS["int8"].with_int8_cache().for_model(checkpoint.config)
    export_unchecked(checkpoint, tmp_path / "package", chosen)
    assert ModelConfig.load(tmp_path / "package").kv_cache == "int8"
    assert distance_to_source(tmp_path / "package", checkpoint, IDS) < 0.1  # Seen: 0.044.


def test_an_adapter_gives_the_logits_of_peft(tmp_path: Path, save_model: SaveModel) -> None:
    model = save_model("gemma3n_text", tmp_path / "hf", **GEMMA3N)
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    modules = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=modules)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    export_adapter(tmp_path / "adapter", tmp_path / "package", tmp_path / "exported")
    loaded = edgelm.load(tmp_path / "package")
    plain_TV = loaded.session.forward(IDS, loaded.new_cache(), all_logits=True)
    loaded.load_adapter(tmp_path / "exported", name="mine")
    cache = loaded.new_cache()
    cache.adapter = "mine"
    logits_TV = loaded.session.forward(IDS, cache, all_logits=True)
    with torch.no_grad():
        expected_TV = adapted(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)
    assert np.abs(plain_TV - expected_TV).max() > 0.1


def test_an_adapter_of_what_corrects_streams_is_refused(tmp_path: Path, save_model: SaveModel) -> None:
    model = save_model("gemma3n_text", tmp_path / "hf", **GEMMA3N)
    export_unchecked(HuggingFaceCheckpoint(tmp_path / "hf"), tmp_path / "package", "fp32")
    get_peft_model(model, LoraConfig(r=2, target_modules=["modality_router"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        CheckpointError, match=r"0\.altup\.modality_router: what predicts and corrects residual streams"
    ):
        export_adapter(tmp_path / "adapter", tmp_path / "package", tmp_path / "exported")


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0"])
def test_the_grids_of_a_file_are_kept_those_of_stacked_matrices_too(
    quantization: str, tmp_path: Path, save_model: SaveModel, write_gguf: Callable[..., Path]
) -> None:
    model = save_model("gemma3n_text", tmp_path / "hf", **GEMMA3N)
    path = write_gguf(tmp_path / "tiny.gguf", model, quantization, architecture="gemma3n")
    with GGUFCheckpoint(path) as checkpoint:
        export_unchecked(checkpoint, tmp_path / "package", "keep")
        with PackageCheckpoint(tmp_path / "package") as package:
            for name in ("model.altup_projections.1.weight", "model.layers.4.laurel.linear_right.weight"):
                assert package.stored_type(name) == f"INT{quantization[1]}"
                np.testing.assert_array_equal(package.tensor(name), checkpoint.tensor(name))


@pytest.mark.parametrize("way", ["smooth", "awq"])
def test_a_transform_leaves_the_logits_as_they_are_and_what_two_ways_read(
    way: str, checkpoint: HuggingFaceCheckpoint
) -> None:
    scales = choose_scales(checkpoint, way, PRECISIONS["int8"].rules, [IDS, IDS[:20]], lambda *_: None)
    assert "model.layers.0.mlp.up_proj" in scales.divisors
    assert not any(name.endswith(("input_layernorm", "v_proj")) for name in scales.divisors)
    changed = ScaledCheckpoint(checkpoint, scales)
    (expected_TV,), (logits_TV,) = (reference_logits(each, [IDS]) for each in (checkpoint, changed))
    # Float32 sums in another order.
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4 * np.abs(expected_TV).max())


def test_every_matrix_on_a_grid_has_a_cost_of_its_own(tmp_path: Path, save_model: SaveModel) -> None:
    save_model("gemma3n_text", tmp_path / "hf", **TWO_STREAMS)
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    groups = tensor_groups(checkpoint)
    assert not any(".altup." in name for name in groups)
    schemes = dict.fromkeys(groups, parse_scheme("int4-block32"))
    costs = measure_sensitivity(checkpoint, groups, schemes, [IDS[:20]], lambda *_: None)
    assert {"model.altup_projections.0", "model.altup_unembed_projections.0"} < costs.keys()
    assert min(costs.values()) > 0


def test_what_is_not_written_for_several_streams_says_so(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    precision = PRECISIONS["int8"].with_prefill_graph()
    with pytest.raises(ExportError, match="A gemma3n_text model has several residual streams, and no prefill graph"):
        export_unchecked(checkpoint, tmp_path / "package", precision)
    with pytest.raises(ExportError, match="A gemma3n_text model cannot be rotated"):
        RotatedCheckpoint(checkpoint)


def test_what_corrects_streams_takes_no_adapter_and_the_first_is_looked_at(
    tmp_path: Path, save_model: SaveModel
) -> None:
    save_model("gemma3n_text", tmp_path / "hf", **GEMMA3N)
    import_checkpoint(tmp_path / "hf", tmp_path / "ours")
    model = load_checkpoint(tmp_path / "ours")
    names = {name.partition(".layers.0.")[2] for name in linear_names(model)}
    assert {"self_attn.q_proj", "laurel.linear_left", "per_layer_input_gate"} < names
    assert not any("altup" in name for name in names)
    tokenizer = Tokenizer.load(tmp_path / "ours")
    seen = inspect_text(model, tokenizer, IDS[:10])
    assert seen.stream_norms.shape == (7, 10)
    embedded_TD = model.model.embed_tokens.weight[IDS[:10]] * 8
    np.testing.assert_allclose(seen.stream_norms[0], embedded_TD.norm(dim=-1).detach().numpy(), rtol=1e-5)


def test_a_scale_of_what_gates_features_is_passed_over_where_it_has_no_effect(
    tmp_path: Path, save_model: SaveModel
) -> None:
    model = save_model("gemma3n_text", tmp_path / "hf", **GEMMA3N | {"altup_correct_scale": False})
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    assert not any("correct_output_scale" in name for name in checkpoint.config.tensor_shapes())
    with torch.no_grad():
        expected_TV = model(torch.tensor([IDS])).logits[0].numpy()
    (logits_TV,) = reference_logits(checkpoint, [IDS])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)
    export_package(checkpoint, tmp_path / "package", "fp32")
    np.testing.assert_allclose(logits_of(tmp_path / "package", IDS), expected_TV, rtol=0, atol=1e-4)


def test_the_text_part_of_a_model_that_sees_and_hears_is_read(
    tmp_path: Path, save_model: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sees and hears there needs another package, and is a small matrix here."""
    save_model("gemma3n_text", tmp_path / "hf", **GEMMA3N)  # for its tokenizer
    own = AutoModel.from_config
    senses = ("gemma3n_vision", "gemma3n_audio")
    made = lambda config: nn.Linear(2, 2) if config.model_type in senses else own(config)  # noqa: E731
    monkeypatch.setattr(modeling_gemma3n.AutoModel, "from_config", made)
    sense = {"hidden_size": 32, "vocab_size": 4}
    config = AutoConfig.for_model(
        "gemma3n",
        text_config=SIZES | GEMMA3N | {"num_key_value_heads": 2, "model_type": "gemma3n_text"},
        vision_config=sense | {"vocab_offset": 312},
        audio_config=sense | {"vocab_offset": 316},
    )
    model = modeling_gemma3n.Gemma3nForConditionalGeneration(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "hf")
    ids = [id_ for id_ in IDS if id_ < 312]
    with torch.no_grad():
        expected_TV = model(torch.tensor([ids])).logits[0].numpy()
    checkpoint = HuggingFaceCheckpoint(tmp_path / "hf")
    assert checkpoint.config.model_type == "gemma3n_text"
    left_out = [name for name in load_file(tmp_path / "hf/model.safetensors") if "language_model" not in name]
    assert any(f"{len(left_out)} tensors" in note for note in checkpoint.notes)
    (logits_TV,) = reference_logits(checkpoint, [ids])
    np.testing.assert_allclose(logits_TV, expected_TV, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"altup_active_idx": 1}, "altup_active_idx is 1; supported is 0, the first stream"),
        ({"intermediate_size": [96, 96, 48]}, r"intermediate_size is \[96, 96, 48\]; supported is one size for all"),
        ({"intermediate_size": []}, r"intermediate_size is \[\]; supported is one size for all"),
        ({"activation_sparsity_pattern": 0.95}, "activation_sparsity_pattern is 0.95; it must be a list with a share"),
        ({"activation_sparsity_pattern": ["x"] * 6}, "activation_sparsity_pattern is 'x'; it must be a number"),
        ({"hidden_size_per_layer_input": 0}, "hidden_size_per_layer_input is 0; it must be from 1 to"),
        ({"laurel_rank": 0}, "laurel_rank is 0; it must be from 1 to"),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear"}}},
            "the layers with a window have rope type 'linear'; supported is default alone",
        ),
    ],
)
def test_a_config_that_is_not_supported_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ROW.to_model_config(VALUES | changes)


def test_null_is_the_default_and_of_more_than_ten_layers_the_first_ten_are_sparse() -> None:
    absent = {"layer_types": None, "activation_sparsity_pattern": None, "final_logit_softcapping": None}
    config = ROW.to_model_config(VALUES | absent | {"num_hidden_layers": 15, "num_kv_shared_layers": 5})
    assert config.activation_sparsity_pattern == (0.95,) * 10 + (0.0,) * 5
    assert config.layer_types == ("sliding_attention",) * 4 * 1 + ("full_attention",) + config.layer_types[5:]
    assert config.layer_types[5:] == (("sliding_attention",) * 4 + ("full_attention",)) * 2
    assert config.final_logit_softcapping is None
    assert config.gate_cutoff(0) == pytest.approx(1.6448536)
    assert config.gate_cutoff(10) is None
    assert ROW.to_model_config(VALUES | {"activation_sparsity_pattern": [0.0] * 6}).activation_sparsity_pattern == ()


def test_without_values_it_has_the_tensors_of_the_largest_published_model() -> None:
    theirs = AutoConfig.for_model("gemma3n_text")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    config = ROW.to_model_config({"model_type": "gemma3n_text"})
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert config.tensor_shapes() == shapes


def gguf_header(**changes: Any) -> GGUFHeader:
    metadata = {
        "block_count": 3, "context_length": 64, "embedding_length": 64, "feed_forward_length": array("i", [96] * 3),
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
        "attention.value_length": 32, "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 9,
        "attention.sliding_window_pattern": [True, False, False], "attention.shared_kv_layers": 1,
        "embedding_length_per_layer_input": 16, "altup.num_inputs": 4, "altup.active_idx": 0,
        "activation_sparsity_scale": array("f", [1.6448535, -np.inf, 0.0]),
    }  # fmt: skip
    shapes = {
        "token_embd.weight": (320, 64),
        "per_layer_token_embd.weight": (320, 48),
        "blk.0.laurel_l.weight": (8, 64),
    }
    shapes |= changes.pop("shapes", {})
    said = {f"gemma3n.{key}": value for key, value in (metadata | changes).items() if value is not None}
    return GGUFHeader(
        metadata={"general.architecture": "gemma3n", **said},
        shapes=shapes,
        rope_factors={},
    )


def config_of_gguf(**changes: Any) -> ModelConfig:
    assert ROW.gguf is not None
    return ROW.to_model_config(ROW.gguf.to_hf_config(gguf_header(**changes)))


def test_a_gguf_header_has_the_quantiles_of_shares() -> None:
    config = config_of_gguf()
    assert config.activation_sparsity_pattern == (0.95, 0.0, 0.5)
    assert (config.intermediate_size, config.laurel_rank, config.vocab_size_per_layer_input) == (96, 8, None)
    assert (config.rope_theta, config.rope_local_theta) == (1e6, 1e4)
    # What older files lack is that of the published models, as in llama.cpp.
    older = config_of_gguf(activation_sparsity_scale=None, **{"attention.sliding_window_pattern": None})
    assert older.activation_sparsity_pattern == ()
    assert older.layer_types == ("sliding_attention",) * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.sliding_window_pattern": [True]}, r"pattern is \[True\]; it must say of each of 3 layers"),
        ({"feed_forward_length": array("i", [96, 48, 96])}, r"intermediate_size is \[96, 48, 96\]; supported is one"),
        ({"activation_sparsity_scale": array("i", [1, 2, 3])}, "activation_sparsity_scale is array.*a list of numbers"),
        ({"activation_sparsity_scale": 1.5}, "activation_sparsity_scale is 1.5; it must be a list of numbers"),
        ({"altup.active_idx": 2}, "altup_active_idx is 2; supported is 0"),
        ({"shapes": {"blk.0.laurel_l.weight": ()}}, "has no tensor blk.0.laurel_l.weight: it is not a whole Gemma 3n"),
        (
            {"shapes": {"per_layer_token_embd.weight": ()}},
            "has no tensor per_layer_token_embd.weight: it is not a whole",
        ),
    ],
)
def test_a_gguf_header_that_is_not_supported_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_of_gguf(**changes)

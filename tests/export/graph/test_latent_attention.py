"""Models with latent attention: one buffer for keys and values, and every answer the one of a fresh start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from make_tiny_model import CONFIG, make_checkpoint
from model_features import LATENT

import edgelm
from edgelm import ChatSession, GenerationConfig, LanguageModel, SessionOptions
from edgelm.architecture.quantization_recipe import PRECISIONS, scheme_for
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, ConfigError, ExportError, PackageError
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.session import DecoderSession
from edgelm_export.architectures import ARCHITECTURES
from edgelm_export.exporter import export_package
from edgelm_export.quantize.sensitivity import tensor_groups
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

LATENT_CONFIG = replace(CONFIG, max_position_embeddings=2048, **LATENT, q_lora_rank=24)
IDS = np.random.default_rng(0).integers(3, 320, 400).tolist()
GREEDY = GenerationConfig(max_new_tokens=40, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    return HuggingFaceCheckpoint(make_checkpoint(tmp_path_factory.mktemp("latent") / "checkpoint", LATENT_CONFIG))


@pytest.fixture(scope="module")
def package(checkpoint: HuggingFaceCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "latent"
    export_package(checkpoint, folder, "int8", name="latent")
    return folder


@pytest.fixture
def model(package: Path) -> LanguageModel:
    return edgelm.load(package, SessionOptions(threads=1))


def alone(model: LanguageModel, ids: list[int], config: GenerationConfig = GREEDY) -> tuple[int, ...]:
    model.prefixes = PrefixCache(model.config, 0)
    return model.generate(ids, config).token_ids


def test_keys_and_values_are_one_buffer_that_a_step_writes_where_it_reads(model: LanguageModel) -> None:
    cache = model.new_cache()
    assert len(cache.buffers) == LATENT_CONFIG.num_hidden_layers
    model.session.forward(IDS[:40], cache)
    before = [buffer.ctypes.data for buffer in cache.buffers]
    binding = cache.binding
    model.session.forward(IDS[40:41], cache)
    assert cache.binding is binding
    assert [buffer.ctypes.data for buffer in cache.buffers] == before
    assert all((buffer[0, 0, 40] != 0).any() and (buffer[0, 0, 41:] == 0).all() for buffer in cache.buffers)


def test_batches_beams_guesses_and_reused_beginnings_give_the_answers_of_each_alone(model: LanguageModel) -> None:
    prompts = [IDS[:100], IDS[:70], IDS[150:190], [*IDS[:64], *IDS[300:330]]]
    expected = [alone(model, prompt) for prompt in prompts]
    model.prefixes = PrefixCache(model.config)
    assert [reply.token_ids for reply in model.generate_batch(prompts, GREEDY)] == expected
    again = [model.generate(prompt, GREEDY) for prompt in prompts]
    assert [reply.token_ids for reply in again] == expected
    assert again[0].usage.cached_tokens == 96
    guessed = GREEDY.replace(speculation="prompt_lookup", exact_speculation=True)
    assert [model.generate(prompt, guessed).token_ids for prompt in prompts] == expected
    beams = GREEDY.replace(num_beams=3, max_new_tokens=12)
    assert model.generate(prompts[0], beams).token_ids == alone(model, prompts[0], beams)


def test_a_cache_is_truncated_grown_saved_and_loaded_as_any_other(model: LanguageModel, tmp_path: Path) -> None:
    cache, fresh = model.new_cache(), model.new_cache()
    model.session.forward(IDS[:100], cache)
    cache.truncate(60)
    model.session.forward(IDS[200:290], cache)  # it grows on the way
    expected_V = model.session.forward([*IDS[:60], *IDS[200:290]], fresh)[0]
    np.testing.assert_allclose(model.session.forward(IDS[:1], cache), model.session.forward(IDS[:1], fresh), atol=1e-5)
    cache.truncate(149)
    np.testing.assert_allclose(model.session.forward(IDS[289:290], cache)[0], expected_V, atol=1e-5)
    cache.save(tmp_path / "cache.npz", "latent")
    loaded = KVCache.load(tmp_path / "cache.npz", model.config, "latent")
    for ours, theirs in zip(loaded.buffers, cache.buffers, strict=True):
        np.testing.assert_array_equal(ours[:, :, :150], theirs[:, :, :150])
    session = ChatSession(model)
    session.send("Hello", GREEDY.replace(max_new_tokens=4)).close()


def test_the_matrices_of_heads_lie_in_8_bits_whatever_the_others_have(package: Path) -> None:
    for precision in ("int4", "int2", "int8"):
        recipe = PRECISIONS[precision].recipe(LATENT_CONFIG)
        assert scheme_for(recipe, "model.layers.0.self_attn.heads.3.k_b_proj.weight") == "int8-block64"
    floats = PRECISIONS["bf16"].recipe(LATENT_CONFIG)
    assert scheme_for(floats, "model.layers.0.self_attn.heads.3.v_b_proj.weight") == "bf16"
    nodes = onnx.load(package / "model.onnx", load_external_data=False).graph.node
    heads = [node for node in nodes if node.op_type == "MatMulNBits" and ".heads." in node.output[0]]
    assert len(heads) == 2 * LATENT_CONFIG.num_attention_heads * LATENT_CONFIG.num_hidden_layers


def test_a_mix_is_not_weighed_for_the_matrices_of_heads(checkpoint: HuggingFaceCheckpoint) -> None:
    groups = tensor_groups(checkpoint)
    assert {"model.layers.0.self_attn.q_a_proj", "model.layers.0.self_attn.kv_a_proj_with_mqa"} <= groups.keys()
    assert not [group for group in groups if ".heads." in group]


def test_what_is_not_written_for_latent_attention_says_so(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    int8 = PRECISIONS["int8"]
    refused = {
        "has latent attention, whose keys and values are one and small: they are not kept in": int8.with_int8_cache(),
        "has latent attention, and no prefill graph is written for it": int8.with_prefill_graph(),
    }
    for message, precision in refused.items():
        with pytest.raises(ExportError, match=message):
            export_package(checkpoint, tmp_path / "package", precision, name="tiny")
    rotated = replace(int8, transforms=("rotate",), fallback=None)
    with pytest.raises(ExportError, match=r"cannot be rotated: .*self_attn.heads"):
        export_package(checkpoint, tmp_path / "package", rotated, name="tiny")


def test_a_graph_and_a_config_of_other_sizes_are_refused(package: Path) -> None:
    config = ModelConfig.load(package)
    with pytest.raises(PackageError, match=r"does not keep one head of 64 of each layer, as the model's config says"):
        DecoderSession(package, replace(config, head_dim=64))
    plain = replace(config, kv_lora_rank=None, q_lora_rank=None, qk_nope_head_dim=None, v_head_dim=None)
    with pytest.raises(PackageError, match="has 2 keys and values; by the model's config they are 4"):
        DecoderSession(package, plain)


VALUES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24,
}  # fmt: skip
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("youtu", {"attention_bias": True}, "attention_bias is true; latent attention with biases is not supported"),
        ("youtu", {"rope_interleave": False}, "rope_interleave is False; supported is True"),
        ("youtu", {"kv_lora_rank": 0}, "kv_lora_rank is 0; it must be from 1 to"),
        (
            "youtu",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale_all_dim": 1e308}},
            "attention_multiplier is inf; it must be a number above 0",
        ),
        ("deepseek_v3", EXPERTS | {"n_group": 3}, "n_group is 3 and topk_group 1; 4 experts do not lie in such groups"),
        (
            "deepseek_v2",
            EXPERTS | {"topk_method": "group_limited_greedy", "n_group": 2},
            "topk_method is 'group_limited_greedy' and n_group 2; supported is 'greedy'",
        ),
        ("deepseek_v3", EXPERTS | {"rope_interleave": False}, "rope_interleave is False; supported is True"),
        (
            "deepseek_v2",
            EXPERTS | {"topk_method": "noaux_tc"},
            "topk_method is 'noaux_tc' and n_group 1; supported",
        ),
        ("deepseek_v2", EXPERTS | {"n_routed_experts": 0}, "n_routed_experts is 0; a model of this family has experts"),
        ("glm4_moe_lite", EXPERTS | {"mlp_layer_types": ["dense"]}, r"mlp_layer_types is \['dense'\]; it must say"),
    ],
)
def test_what_a_row_does_not_know_is_named(model_type: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message):
        ARCHITECTURES[model_type].to_model_config(VALUES | changes)

"""The contract between model.py (PyTorch) and decoder.py (ONNX): one row for each feature of ModelConfig."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint

from edgelm.config import ModelConfig
from edgelm.decoding.generate import prefill
from edgelm.errors import ExportError
from edgelm.runtime.session import DecoderSession
from edgelm_export.decoder import build_decoder
from edgelm_export.external_data import ExternalData
from edgelm_export.huggingface import HuggingFaceCheckpoint
from edgelm_export.quantize import PRECISIONS, Precision, Rule
from edgelm_export.reference import reference_logits
from edgelm_training.checkpoint import load_checkpoint
from edgelm_training.model import generate

# Float32 through a few layers, in another order of sums; the largest difference seen is 1.3e-5.
TOLERANCE = 1e-4
LONGROPE = {
    "rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 128,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}  # fmt: skip

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}

FEATURES = {
    "tiny": {},
    "untied head": {"tie_word_embeddings": False},
    "multi-head": {"num_key_value_heads": 2},
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "head_dim not hidden/heads": {"head_dim": 32},
    "biases": {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True},
    "query, key and value biases alone": {"attention_bias": True},
    "query and key norms": {"qk_norm": True},
    "query and key norms and biases, head_dim not hidden/heads": {
        "qk_norm": True, "attention_bias": True, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    },
    "query and key layer norms": {"qk_norm": True, "norm": "layer"},
    "rope theta": {"rope_theta": 500000.0},
    "rope linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "rope llama3": {
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}
    },
    "rope yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "rope yarn, ramp not truncated": {
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "truncate": False,
        },
    },
    "rope dynamic, beyond the original context": {
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}
    },
    "rope longrope, beyond the original context": {"rope_scaling": LONGROPE},
    "rope longrope, within the original context": {
        "rope_scaling": LONGROPE | {"original_max_position_embeddings": 512}
    },
    "rope of a part of each head": {"partial_rotary_factor": 0.25},
    "rope of a part of each head, longrope": {
        "head_dim": 32, "partial_rotary_factor": 0.5, "rope_scaling": LONGROPE,
    },
    "layers without rope": {"num_hidden_layers": 3, "layers_without_rope": [0, 2]},
    "a window in every layer": {"sliding_window": 7},
    "a window in one layer": {
        "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"],
    },
    "a window in one layer, with a rope of its own": {
        "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"], "rope_local_theta": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "a window as long as the context": {"sliding_window": 1024},
    "soft-cap of attention": {"attn_logit_softcapping": 0.5},
    "soft-cap of attention, in a window": {"attn_logit_softcapping": 0.5, "sliding_window": 7},
    "soft-cap of logits": {"final_logit_softcapping": 0.5},
    "attention multiplier": {"attention_multiplier": 0.5},
    "embedding multiplier": {"embedding_multiplier": 6.0},
    "residual multiplier": {"residual_multiplier": 0.3, "attention_output_bias": True, "mlp_bias": True},
    "residual multiplier of what norms make": {"residual_multiplier": 0.3, "norm_placement": "both", "norm": "layer"},
    "logits scaling": {"logits_scaling": 8.0},
    "norms behind": {"norm_placement": "post"},
    "norms on both sides": {"norm_placement": "both"},
    "norms of the residual stream": {"norm_placement": "residual", "norm": "layer", "residual_multiplier": 0.5},
    "no norm behind the last block": {"norm_placement": "residual", "final_norm": False},
    "in parallel": {"parallel_residual": True},
    "in parallel behind one norm": {"parallel_residual": True, "norm_placement": "shared"},
    "norms of 1 + weight": {"norm": "rms_offset", "qk_norm": True, "embedding_norm": True},
    "norms without weights": {"norm": "rms_plain", "qk_norm": True, "embedding_norm": True},
    "query and key norms over all heads": {
        "qk_norm": True, "qk_norm_scope": "projection", "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "a norm of the embeddings": {"embedding_norm": True, "norm": "layer"},
    "a bias of the head": {"lm_head_bias": True, "tie_word_embeddings": False},
    "a bias of the tied head, scaled and capped": {
        "lm_head_bias": True, "logits_scaling": 2.0, "final_logit_softcapping": 3.0,
    },
    "relu squared": {"hidden_act": "relu2", "mlp_gated": False},
    "experts": EXPERTS,
    "experts, weights that do not sum to one": EXPERTS | {"norm_topk_prob": False, "moe_intermediate_size": 24},
    "experts in one layer, with biases": EXPERTS | {
        "layers_without_experts": [0], "mlp_bias": True, "router_bias": True,
    },
    "experts with a clamped gate": EXPERTS | {
        "mlp_bias": True, "router_bias": True, "swiglu_limit": 0.4, "swiglu_alpha": 1.7,
    },
    "experts behind a residual multiplier": EXPERTS | {"residual_multiplier": 0.3},
    "attention sinks": {"attention_sinks": True, "num_attention_heads": 4, "num_key_value_heads": 2},
    "attention sinks, in a window, without rope": {
        "attention_sinks": True, "sliding_window": 7, "layers_without_rope": [1],
    },
    "attention sinks, longrope": {"attention_sinks": True, "rope_scaling": LONGROPE},
    "learned positions": {"position": "learned"},
    "sinusoidal positions": {"position": "sinusoidal"},
    "sinusoidal positions, all sines first": {"position": "sinusoidal_halves"},
    "relative positions": {"position": "relative"},
    "relative positions of few buckets, beyond the largest distance, in a window": {
        "position": "relative", "relative_attention_num_buckets": 6, "relative_attention_max_distance": 20,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 30,
    },
    "no positions": {"position": "none"},
    "layer norm": {"norm": "layer", "norm_eps": 1e-3},
    "plain feed-forward": {"mlp_gated": False},
    "gelu": {"hidden_act": "gelu"},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "as GPT-2": {
        "norm": "layer", "position": "learned", "mlp_gated": False, "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": True, "attention_output_bias": True, "mlp_bias": True, "num_key_value_heads": 2,
    },
}  # fmt: skip


def config_with(features: dict) -> ModelConfig:
    return ModelConfig.from_dict(CONFIG.to_dict() | features)


def export(folder: Path, config: ModelConfig, precision: str) -> tuple[HuggingFaceCheckpoint, DecoderSession]:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint", config, seed=1))
    with ExternalData(folder / "model.onnx.data") as data:
        model = build_decoder(checkpoint, PRECISIONS[precision], data)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return checkpoint, DecoderSession(folder, config)


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_the_graph_gives_the_logits_of_pytorch(features: dict, tmp_path: Path) -> None:
    config = config_with(features)
    _, session = export(tmp_path, config, "fp32")
    transformer = load_checkpoint(tmp_path / "checkpoint")
    ids = np.random.default_rng(0).integers(3, config.vocab_size, 150).tolist()
    with torch.no_grad():
        expected_TV = transformer(torch.tensor([ids]))[0].numpy()
    (numpy_TV,) = reference_logits(HuggingFaceCheckpoint(tmp_path / "checkpoint"), [ids])
    np.testing.assert_allclose(numpy_TV, expected_TV, atol=TOLERANCE)
    at_once_TV = session.forward(ids, session.new_cache(), all_logits=True)
    np.testing.assert_allclose(at_once_TV, expected_TV, atol=TOLERANCE)
    # Chunks of 128 and the rest, then one token at a time: the cached positions must count.
    cache = session.new_cache()
    np.testing.assert_allclose(prefill(session, ids[:140], cache), expected_TV[139], atol=TOLERANCE)
    for position in range(140, 150):
        logits_TV = session.forward(ids[position : position + 1], cache)
        np.testing.assert_allclose(logits_TV[0], expected_TV[position], atol=TOLERANCE)


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_the_fast_loop_chooses_the_tokens_of_the_naive_one(features: dict, tmp_path: Path) -> None:
    config = config_with(features)
    _, session = export(tmp_path, config, "fp32")
    ids = np.random.default_rng(1).integers(3, config.vocab_size, 20).tolist()
    naive = generate(load_checkpoint(tmp_path / "checkpoint"), ids, 12)
    cache = session.new_cache()
    logits_V = prefill(session, ids, cache)
    fast = []
    for _ in naive:
        assert logits_V is not None
        fast.append(int(logits_V.argmax()))
        logits_V = session.forward(fast[-1:], cache)[0]
    assert fast == naive


# Relative to the logits. Seen: up to 0.047, 0.200 and 8e-7; a wrong scale or order of nibbles gives 1 or more.
@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.1), ("int4", 0.3), ("keep", TOLERANCE)])
@pytest.mark.parametrize("name", ["tiny", "untied head", "biases", "query and key norms", "plain feed-forward"])
def test_a_quantized_graph_stays_near_its_source(name: str, precision: str, bound: float, tmp_path: Path) -> None:
    config = config_with({"hidden_size": 128, "num_hidden_layers": 4, **FEATURES[name]})
    _, session = export(tmp_path, config, precision)
    ids = list(range(3, 60))
    with torch.no_grad():
        expected_TV = load_checkpoint(tmp_path / "checkpoint")(torch.tensor([ids]))[0].numpy()
    got_TV = session.forward(ids, session.new_cache(), all_logits=True)
    assert np.linalg.norm(got_TV - expected_TV) / np.linalg.norm(expected_TV) < bound


@pytest.mark.parametrize("name", ["biases", "query and key norms"])
def test_query_key_and_value_may_be_stored_by_different_schemes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = (Rule(pattern=r"v_proj", scheme="fp32"), Rule(pattern=r".", scheme="int8-block64"))
    monkeypatch.setitem(PRECISIONS, "mixed", Precision(rules=rules, perplexity_bound=1.03))
    config = config_with({"hidden_size": 128, **FEATURES[name]})
    _, session = export(tmp_path, config, "mixed")
    ids = list(range(3, 60))
    with torch.no_grad():
        expected_TV = load_checkpoint(tmp_path / "checkpoint")(torch.tensor([ids]))[0].numpy()
    got_TV = session.forward(ids, session.new_cache(), all_logits=True)
    assert np.linalg.norm(got_TV - expected_TV) / np.linalg.norm(expected_TV) < 0.1  # as int8 above; seen: 0.030


def test_initializers_have_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    export(tmp_path, CONFIG, "int8")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    names = {tensor.name for tensor in model.graph.initializer}
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.qkv_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.mlp.gate_up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.norm.weight",
    } <= names


def test_a_tied_head_and_embedding_are_one_tensor_on_disk(tmp_path: Path) -> None:
    for name, tied in (("tied", True), ("untied", False)):
        (tmp_path / name).mkdir()
        export(tmp_path / name, config_with({"vocab_size": 4096, "tie_word_embeddings": tied}), "int8")
    sizes = {name: (tmp_path / name / "model.onnx.data").stat().st_size for name in ("tied", "untied")}
    assert sizes["untied"] - sizes["tied"] >= 4096 * 32


def test_a_head_that_the_operator_cannot_rotate_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"head_dim is 24; .* a multiple of 16"):
        export(tmp_path, config_with({"head_dim": 24}), "fp32")

"""Checkpoints of every family that transformers knows: it loads them, and computes as we do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_features import GEMMA4_FEATURES, STREAMS
from transformers import AutoModelForCausalLM

from edgelm.config import ModelConfig
from edgelm.rope_scaling import RopeScaling
from edgelm_training.checkpoint import load_checkpoint, save_checkpoint
from edgelm_training.model import Transformer

LLAMAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied, with biases": {
        "tie_word_embeddings": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
    },
    "of another name": {"model_type": "smollm", "hidden_act": "gelu_pytorch_tanh", "norm_eps": 1e-4},
    "llama3": {"rope_scaling": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=32)},
    "yarn": {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)},
    "linear": {"rope_scaling": RopeScaling(rope_type="linear", factor=4.0), "rope_theta": 500.0},
    "yarn with its own attention factor": {
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.5, beta_fast=8.0
        ),
    },
    "one key head, relu": {"num_key_value_heads": 1, "head_dim": 6, "hidden_act": "relu"},
    "as many key heads, gelu": {"num_key_value_heads": 4, "head_dim": 32, "hidden_act": "gelu"},
}
QWENS: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_bias": True, "model_type": "qwen2"},
    "qwen3": {"qk_norm": True, "num_attention_heads": 10, "tie_word_embeddings": True},
    "qwen3, with biases": {"qk_norm": True, "attention_bias": True, "attention_output_bias": True},
}
OLMO2 = {"norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection"}
GEMMA = {"norm": "rms_offset", "norm_placement": "both", "embedding_multiplier": 24**0.5, "attention_multiplier": 0.25}
WINDOWS = {"sliding_window": 6, "layer_types": ("full_attention", "sliding_attention")}
TWO_ROTATIONS = WINDOWS | {"rope_local_theta": 100.0}
# transformers' model_type -> features.
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6, "num_attention_heads": 10},
    "qwen2": {"attention_bias": True, "sliding_window": 6, "layer_types": ("sliding_attention", "full_attention")},
    "qwen3": {"qk_norm": True, "sliding_window": 6},
    "smollm3": {"layers_without_rope": (0,), "head_dim": 6, "mlp_bias": True},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "granite_swa": TWO_ROTATIONS
    | {"attention_sinks": True, "residual_multiplier": 0.5, "head_dim": 6, "layers_without_rope": (0,)},
    "olmo2": OLMO2,
    "exaone4": WINDOWS | {"norm_placement": "post", "qk_norm": True, "layers_without_rope": (0,)},
    "arcee": {"mlp_gated": False, "hidden_act": "relu2", "mlp_bias": True},
    "gemma": {"norm": "rms_offset", "embedding_multiplier": 24**0.5},
    "olmo3": OLMO2
    | TWO_ROTATIONS
    | {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)},
    "gemma2": GEMMA
    | {
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 6,
        "layer_types": ("sliding_attention", "full_attention"),
    },
    "gemma3_text": GEMMA
    | TWO_ROTATIONS
    | {"qk_norm": True, "rope_scaling": RopeScaling(rope_type="linear", factor=8.0)},
    "gemma3n_text": STREAMS
    | TWO_ROTATIONS
    | {
        "embedding_multiplier": 24**0.5,
        "attention_multiplier": 1.0,
        "qk_norm": True,
        "v_norm": True,
        "final_logit_softcapping": 3.0,
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 1,
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "activation_sparsity_pattern": (0.9, 0.0, 0.5),
        "vocab_size_per_layer_input": None,
    },
    "gemma4_text": GEMMA4_FEATURES | {"embedding_multiplier": 24**0.5},
    "stablelm": {"norm": "layer", "head_dim": 6, "attention_bias": True, "partial_rotary_factor": 0.67},
    "stablelm, in parallel": {
        "norm": "layer",
        "head_dim": 6,
        "norm_placement": "shared",
        "parallel_residual": True,
    },
    "nemotron": {
        "norm": "layer_offset",
        "mlp_gated": False,
        "hidden_act": "relu2",
        "partial_rotary_factor": 0.6,
        "attention_bias": True,
        "attention_output_bias": True,
    },
    "olmo": {"norm": "layer_plain"},
    "jais2": {"norm": "layer", "mlp_gated": False, "hidden_act": "relu2", "mlp_bias": True, "head_dim": 6},
    "bitnet": {"sub_norms": True, "head_dim": 6, "hidden_act": "relu2"},
    "seed_oss": {"attention_bias": True, "mlp_bias": True},
    "seed_oss, a bias of o alone": {"attention_output_bias": True},
    "seed_oss, heads that do not divide the hidden size": {
        "num_attention_heads": 10,
        "attention_bias": True,
        "attention_output_bias": True,
    },
    "llama, dynamic rope": {
        "rope_scaling": RopeScaling(rope_type="dynamic", factor=2.0, original_max_position_embeddings=100)
    },
    "llama, longrope": {
        "rope_scaling": RopeScaling(
            rope_type="longrope",
            factor=2.0,
            original_max_position_embeddings=8,
            short_factor=(1.0, 1.5, 2.0, 2.5, 3.0),
            long_factor=(1.0, 2.0, 3.0, 4.0, 5.0),
        )
    },
}
SIGMOIDS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "scoring_func": "sigmoid",
    "expert_choice_bias": True, "shared_expert_intermediate_size": 24, "routed_scaling_factor": 1.5,
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
    "olmoe": {
        "qk_norm": True, "qk_norm_scope": "projection", "head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2,
        "norm_topk_prob": False,
    },
    "flex_olmo": OLMO2
    | {"head_dim": 6, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
    "mellum": TWO_ROTATIONS
    | {
        "qk_norm": True, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    },
    "glm4_moe": SIGMOIDS | {
        "qk_norm": True, "num_hidden_layers": 3, "layers_without_experts": (0,), "partial_rotary_factor": 0.6,
        "attention_bias": True, "norm_topk_prob": False,
    },
    "dots1": SIGMOIDS | {
        "qk_norm": True, "sliding_window": 6, "layer_types": ("full_attention", "sliding_attention"),
        "attention_bias": True, "attention_output_bias": True,
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "attention sinks, query and key norms": {"attention_sinks": True, "qk_norm": True},
    "experts without query and key norms": {"num_experts": 3, "num_experts_per_tok": 1, "router_bias": True},
    "layer norm": {"norm": "layer"},
    "learned positions": {"position": "learned"},
    "plain feed-forward, query and key norms": {"mlp_gated": False, "qk_norm": True},
    "query and key norms with biases of q, k and v alone": {"qk_norm": True, "attention_bias": True},
    "query and key norms with biases of the feed-forward": {"qk_norm": True, "mlp_bias": True},
    "a bias of the head": {"lm_head_bias": True},
    "norms without weights": {"norm": "rms_plain"},
    "norms of 1 + weight alone": {"norm": "rms_offset"},
    "attention and feed-forward in parallel": {"parallel_residual": True},
    "a soft-cap alone": {"final_logit_softcapping": 3.0},
    "xielu, whose factors are learned": {"hidden_act": "xielu", "mlp_gated": False},
    "xielu of a gate": {"hidden_act": "xielu"},
    "one norm in parallel, of another kind": {"parallel_residual": True, "norm_placement": "shared"},
}


def ids_of(config: ModelConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (1, 90), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", LLAMAS | QWENS | OTHERS)
def test_a_saved_model_loads_with_the_same_config_and_weights(
    name: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, **(LLAMAS | QWENS | OTHERS)[name])
    model = Transformer(config)
    save_checkpoint(model, tmp_path / "checkpoint")

    loaded = load_checkpoint(tmp_path / "checkpoint")

    assert loaded.config == config
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(ids_of(config)), model(ids_of(config)))


@pytest.mark.parametrize("name", LLAMAS | QWENS | FAMILIES | EXPERTS)
def test_transformers_loads_a_family_that_it_knows_as_it_is(
    name: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, **(LLAMAS | QWENS | FAMILIES | EXPERTS)[name])
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    save_checkpoint(model, tmp_path / "checkpoint")

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")

    assert theirs.config.model_type == ("llama" if name in LLAMAS else name.partition(",")[0])
    assert theirs.generation_config.eos_token_id == 2
    theirs.save_pretrained(tmp_path / "again")
    assert ModelConfig.load(tmp_path / "again") == config
    with torch.no_grad():
        expected, logits = theirs(ids_of(config)).logits, model(ids_of(config))
    # float32 on both sides, summed in another order. Measured: 7e-6 on logits of up to 6.7.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", OTHERS)
def test_transformers_refuses_what_it_has_no_model_for(name: str, tiny_config: ModelConfig, tmp_path: Path) -> None:
    save_checkpoint(Transformer(replace(tiny_config, **OTHERS[name])), tmp_path / "checkpoint")

    with pytest.raises(ValueError, match="edgelm"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")

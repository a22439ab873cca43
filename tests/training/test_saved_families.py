"""Checkpoints as they are saved: ours load again, and in transformers those of a family that it knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_features import GEMMA4_FEATURES, STREAMS
from transformers import AutoModelForCausalLM

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig
from edgelm_training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from edgelm_training.model import Transformer

# Of the other families, and of other features of these, an imported model is what test_families.py compares.
KNOWN: dict[str, dict[str, Any]] = {
    "llama, of another name, yarn with its own attention factor": {
        "model_type": "smollm",
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.5, beta_fast=8.0
        ),
    },
    "llama, dynamic rope": {
        "rope_scaling": RopeScaling(rope_type="dynamic", factor=2.0, original_max_position_embeddings=100)
    },
    "qwen3, with biases": {"qk_norm": True, "attention_bias": True, "attention_output_bias": True},
    "seed_oss, heads that do not divide the hidden size": {
        "num_attention_heads": 10,
        "attention_bias": True,
        "attention_output_bias": True,
    },
    "granite, attention scaled as usual": {"residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "stablelm": {"norm": "layer", "norm_eps": 0.1, "head_dim": 6},
    "gemma2, another activation": {
        "norm": "rms_offset", "norm_placement": "both", "embedding_multiplier": 24**0.5, "attention_multiplier": 0.25,
        "sliding_window": 6, "layer_types": ("sliding_attention", "full_attention"),
    },
    "gemma2, without windows": {
        "norm": "rms_offset", "norm_placement": "both", "embedding_multiplier": 24**0.5, "attention_multiplier": 0.25,
        "attn_logit_softcapping": 3.0,
    },
    "olmo3, without windows": {
        "norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection", "rope_local_theta": 100.0,
    },
    "granite_swa, without windows": {"attention_sinks": True},
    "gemma3n_text, another activation": STREAMS
    | {
        "embedding_multiplier": 24**0.5, "attention_multiplier": 1.0, "qk_norm": True, "v_norm": True,
        "final_logit_softcapping": 3.0, "num_hidden_layers": 3, "num_kv_shared_layers": 1, "sliding_window": 6,
        "rope_local_theta": 100.0,
        "layer_types": ("sliding_attention", "full_attention", "sliding_attention"),
        "activation_sparsity_pattern": (0.9, 0.0, 0.5), "vocab_size_per_layer_input": None,
    },
    "gemma4_text, another activation": GEMMA4_FEATURES | {"embedding_multiplier": 24**0.5},
    "jais2": {"norm": "layer", "norm_eps": 0.1, "head_dim": 6, "mlp_gated": False, "hidden_act": "relu2"},
}  # fmt: skip
# transformers has no model for these.
OTHERS: dict[str, dict[str, Any]] = {
    "a Gemma 3n without its soft-cap": KNOWN["gemma3n_text, another activation"] | {"final_logit_softcapping": None},
    "attention sinks, query and key norms": {"attention_sinks": True, "qk_norm": True},
    "experts without query and key norms": {"num_experts": 3, "num_experts_per_tok": 1, "router_bias": True},
    "layer norm": {"norm": "layer"},
    "learned positions": {"position": "learned"},
    "plain feed-forward, query and key norms": {"mlp_gated": False, "qk_norm": True},
    "query and key norms with biases of q, k and v alone": {"qk_norm": True, "attention_bias": True},
    "query and key norms with biases of the feed-forward": {"qk_norm": True, "mlp_bias": True},
    "norms behind, and heads that do not turn in a layer without a window": {
        "norm_placement": "post", "qk_norm": True, "layers_without_rope": (0,),
    },
    "a bias of the head": {"lm_head_bias": True},
    "norms without weights": {"norm": "rms_plain"},
    "OLMo's norms, whose epsilon is fixed, with another": {"norm": "layer_plain", "norm_eps": 1e-6},
    "norms of 1 + weight alone": {"norm": "rms_offset"},
    "attention and feed-forward in parallel": {"parallel_residual": True},
    "a soft-cap alone": {"final_logit_softcapping": 3.0},
    "xielu, whose factors are learned": {"hidden_act": "xielu", "mlp_gated": False},
    "xielu of a gate": {"hidden_act": "xielu"},
    "one norm in parallel, of another kind": {"parallel_residual": True, "norm_placement": "shared"},
}  # fmt: skip


def ids_of(config: ModelConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (1, 90), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KNOWN | OTHERS)
def test_a_saved_model_loads_again_and_in_transformers_where_that_has_such_a_family(
    name: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    config = replace(tiny_config, **(KNOWN | OTHERS)[name])
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    save_checkpoint(model, tmp_path / "checkpoint")

    loaded = load_checkpoint(tmp_path / "checkpoint")

    assert loaded.config == config
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    with torch.no_grad():
        logits = model(ids_of(config))
        assert torch.equal(loaded(ids_of(config)), logits)
    if name in OTHERS:
        with pytest.raises(ValueError, match="edgelm"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
        return

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert theirs.config.model_type == name.partition(",")[0]
    assert theirs.generation_config.eos_token_id == 2
    theirs.save_pretrained(tmp_path / "again")
    assert ModelConfig.load(tmp_path / "again") == config
    # float32 on both sides, summed in another order. Measured: 7e-6 on logits of up to 6.7.
    torch.testing.assert_close(logits, theirs(ids_of(config)).logits, atol=1e-4, rtol=0)

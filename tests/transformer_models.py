"""Models for the tests of the PyTorch Transformer: one row for each feature, those first that transformers has too."""

from __future__ import annotations

from typing import Any

from model_features import GEMMA4_FEATURES, LINEAR, MAMBA, STREAMS

from edgelm.rope_scaling import RopeScaling

LLAMAS: dict[str, dict[str, Any]] = {
    "multi-head": {"num_key_value_heads": 4},
    "grouped-query": {"num_key_value_heads": 2},
    "multi-query": {"num_key_value_heads": 1},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "head_dim is hidden/heads": {"head_dim": 6},
    "head_dim is larger": {"head_dim": 32},
    "tied": {"tie_word_embeddings": True},
    "attention biases": {"attention_bias": True, "attention_output_bias": True},
    "feed-forward biases": {"mlp_bias": True},
    "all biases, tied": {
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "one layer": {"num_hidden_layers": 1},
    "gelu": {"hidden_act": "gelu"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "another eps and theta": {"norm_eps": 1e-3, "rope_theta": 500.0},
    "rope linear": {"rope_scaling": RopeScaling(rope_type="linear", factor=2.0)},
    "rope llama3": {
        "rope_scaling": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=32),
    },
    "rope yarn": {
        "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    },
    "rope yarn with its own attention factor": {
        "rope_scaling": RopeScaling(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.5, beta_fast=8.0
        ),
    },
}

QWENS: dict[str, dict[str, Any]] = {
    "qwen2": {"attention_bias": True},
    "qwen2, tied": {"attention_bias": True, "tie_word_embeddings": True, "num_attention_heads": 10},
    "qwen3": {"qk_norm": True},
    "qwen3, with biases and another eps": {
        "qk_norm": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "norm_eps": 1e-2,
    },
}

GPT2 = {
    "model_type": "gpt2",
    "num_key_value_heads": 4,
    "head_dim": 6,
    "norm": "layer",
    "position": "learned",
    "hidden_act": "gelu_pytorch_tanh",
    "mlp_gated": False,
    "mlp_bias": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "tie_word_embeddings": True,
}

SHARED_KEYS = GEMMA4_FEATURES | {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ("sliding_attention", "full_attention") * 2,
    "attention_k_eq_v": False,
    "use_double_wide_mlp": True,
}
FEATURES: dict[str, dict[str, Any]] = (
    LLAMAS
    | QWENS
    | {
        "gpt2": GPT2,
        "gpt2, untied": GPT2 | {"tie_word_embeddings": False},
        "sinusoidal": {"position": "sinusoidal"},
        "no positions": {"position": "none"},
        "plain feed-forward": {"mlp_gated": False},
        "layer norm": {"norm": "layer"},
        "layer norms of 1 + weight": {"norm": "layer_offset"},
        "layer norms without weights": {"norm": "layer_plain"},
        "layer norms without biases": {"norm": "layer_no_bias", "embedding_norm": True},
        "query and key layer norms": {"norm": "layer", "qk_norm": True},
        "rope dynamic": {
            "rope_scaling": RopeScaling(rope_type="dynamic", factor=4.0, original_max_position_embeddings=16)
        },
        "rope longrope": {
            "rope_scaling": RopeScaling(
                rope_type="longrope",
                factor=4.0,
                original_max_position_embeddings=16,
                short_factor=(1.0, 1.2, 1.5, 1.8, 2.0),
                long_factor=(2.0, 2.5, 3.0, 3.5, 4.0),
            )
        },
        "queries that grow beyond the original context": {
            "llama_4_scaling_beta": 0.5,
            "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=8),
        },
        "rope of a part of each head": {"partial_rotary_factor": 0.6},
        "windows, one with a rope of its own": {
            "sliding_window": 6,
            "layer_types": ("sliding_attention", "full_attention"),
            "rope_local_theta": 100.0,
        },
        "windows, a layer without rope": {"sliding_window": 6, "layers_without_rope": (1,)},
        "convolutions": {"layer_types": ("conv", "full_attention"), "conv_L_cache": 3},
        "convolutions over five tokens, with biases": {
            "layer_types": ("full_attention", "conv"),
            "conv_L_cache": 5,
            "conv_bias": True,
        },
        "linear attention": {"layer_types": ("linear_attention", "full_attention"), **LINEAR},
        "Mamba": {"layer_types": ("mamba", "full_attention"), **MAMBA},
        "linear attention, a gate behind attention": {
            "layer_types": ("full_attention", "linear_attention"),
            **LINEAR,
            "linear_num_key_heads": 4,
            "attention_output_gate": True,
        },
        "a gate for each head": {"attention_output_gate": True, "attention_gate_per_head": True},
        "soft-caps": {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0},
        "soft-cap in a window": {"attn_logit_softcapping": 1.0, "sliding_window": 6},
        "multipliers": {
            "attention_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        "norms behind": {"norm_placement": "post", "norm": "layer"},
        "norms on both sides, of 1 + weight": {"norm_placement": "both", "norm": "rms_offset", "qk_norm": True},
        "in parallel": {"parallel_residual": True},
        "in parallel behind one norm": {"parallel_residual": True, "norm_placement": "shared"},
        "norms without weights": {"norm": "rms_plain", "qk_norm": True, "embedding_norm": True},
        "query and key norms behind rope": {"qk_norm": True, "qk_norm_scope": "turned_head"},
        "query and key norms over all heads": {"qk_norm": True, "qk_norm_scope": "projection"},
        "a norm of the embeddings": {"embedding_norm": True},
        "a bias of the head": {"lm_head_bias": True},
        "a bias of the tied head": {"lm_head_bias": True, "tie_word_embeddings": True},
        "norms before the last projections": {"sub_norms": True},
        "xielu": {"hidden_act": "xielu", "mlp_gated": False},
        "relu squared": {"hidden_act": "relu2", "mlp_gated": False},
        "experts weighted by a sigmoid, chosen with a bias": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "scoring_func": "sigmoid",
            "expert_choice_bias": True,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.5,
            "shared_expert_intermediate_size": 12,
        },
        "experts with norms and factors of their own, gated by gelu": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_placement": "both",
            "shared_expert_intermediate_size": 12,
            "expert_norms": True,
            "expert_scales": True,
        },
        "keys that are values, features of each layer's own": GEMMA4_FEATURES,
        "keys of other layers": SHARED_KEYS,
        "several residual streams": STREAMS | {"vocab_size_per_layer_input": 10},
    }
)

"""Random models of further families with experts, in configurations that have every feature of their rows."""

from __future__ import annotations

from typing import Any

_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 32}
GLM4_MOE = _EXPERTS | {
    "head_dim": 32, "n_routed_experts": 6, "use_qk_norm": True, "routed_scaling_factor": 1.5, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
SARVAM = _EXPERTS | {"head_dim": 32, "n_routed_experts": 6, "pad_token_id": 0}
DOTS1 = _EXPERTS | {
    "head_dim": 32, "n_routed_experts": 6, "n_shared_experts": 2, "first_k_dense_replace": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "tie_word_embeddings": False, "num_key_value_heads": 4,
}  # fmt: skip
AFMOE = _EXPERTS | {
    "num_hidden_layers": 4, "head_dim": 32, "num_experts": 6, "route_scale": 1.5, "sliding_window": 9,
    "mup_enabled": True, "tie_word_embeddings": False,
}  # fmt: skip
EXAONE_MOE = _EXPERTS | {
    "num_hidden_layers": 4, "num_experts": 6, "sliding_window": 9, "tie_word_embeddings": False,
}  # fmt: skip
LAGUNA = _EXPERTS | {
    "num_hidden_layers": 5, "head_dim": 32, "num_experts": 6, "sliding_window": 9, "tie_word_embeddings": False,
    "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"], "num_attention_heads": 4,
    "num_attention_heads_per_layer": [4, 6, 6, 6, 4], "shared_expert_intermediate_size": 64,
    "moe_routed_scaling_factor": 2.5,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e5,
            "partial_rotary_factor": 0.5, "beta_fast": 64.0, "beta_slow": 1.0,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    },
}  # fmt: skip
HUNYUAN_MOE = {"head_dim": 16, "num_experts": 6, "moe_topk": 3, "pad_token_id": 0}
MELLUM = _EXPERTS | {
    "num_hidden_layers": 4, "head_dim": 32, "num_experts": 6, "sliding_window": 9, "tie_word_embeddings": False,
    "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def mellum_rope(local_theta: float) -> dict[str, Any]:
    """Return the two rotations of a Mellum; llama.cpp turns the heads of all layers by one base."""
    return {
        "full_attention": _YARN | {"rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
    }


QWEN2_MOE = {
    "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
}  # fmt: skip
FLINT = QWEN2_MOE | {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": 9, "shared_expert_intermediate_size": 48}
LARA_MINI = FLINT | {
    "num_hidden_layers": 5, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}  # fmt: skip
# The first layer is wider than an expert, and turns its heads though it sees all.
COHERE2_MOE = {
    "num_hidden_layers": 4, "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 3, "sliding_window": 9,
    "logit_scale": 0.5, "expert_selection_fn": "sigmoid", "first_k_dense_replace": 1,
    "prefix_dense_intermediate_size": 160,
}  # fmt: skip
SOLAR_OPEN = _EXPERTS | {"head_dim": 32, "n_routed_experts": 6, "tie_word_embeddings": False}
HY_V3 = _EXPERTS | {"head_dim": 32, "num_experts": 6, "num_shared_experts": 2, "tie_word_embeddings": False}
MINIMAX_M2 = {
    "head_dim": 32, "num_local_experts": 6, "num_experts_per_tok": 3, "rotary_dim": 16, "tie_word_embeddings": False,
}  # fmt: skip
EXPERT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "flint": ("flint", FLINT | {"tie_word_embeddings": False}),
    "flint, all layers with experts whose weights do not sum to one": (
        "flint",
        FLINT | {
            "mlp_only_layers": [], "norm_topk_prob": False, "attention_bias": True,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "lara_mini": ("lara_mini", LARA_MINI),
    "lara_mini, untied, weights that do not sum to one": (
        "lara_mini",
        LARA_MINI | {
            "tie_word_embeddings": False, "norm_topk_prob": False, "linear_num_key_heads": 4, "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "sliding_attention"],
        },
    ),
    "qwen2_moe": ("qwen2_moe", QWEN2_MOE | {"tie_word_embeddings": False}),
    "qwen2_moe, a layer without experts, weights that sum to one, without biases, in a window": (
        "qwen2_moe",
        QWEN2_MOE | {
            "num_hidden_layers": 3, "mlp_only_layers": [1], "norm_topk_prob": True, "qkv_bias": False,
            "use_sliding_window": True, "sliding_window": 9,
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "tie_word_embeddings": False}),
    "mixtral in a window, four experts a token": ("mixtral", {"sliding_window": 9, "num_experts_per_tok": 4}),
    "phimoe": (
        "phimoe",
        {"num_local_experts": 6, "attention_bias": True, "lm_head_bias": True, "tie_word_embeddings": False},
    ),
    "phimoe in a window, without biases, three experts": ("phimoe", {"sliding_window": 9, "num_local_experts": 3}),
    "laguna": ("laguna", LAGUNA),
    "laguna, a gate for each number, as many heads everywhere, no layer without experts, tied": (
        "laguna",
        LAGUNA | {
            "gating": "per-element", "num_attention_heads_per_layer": None, "mlp_layer_types": ["sparse"] * 5,
            "rope_parameters": None, "tie_word_embeddings": True, "sliding_window": 7,
        },
    ),
    "laguna without windows, and a part that turns beside those of the kinds, which has no effect": (
        "laguna",
        LAGUNA | {
            "layer_types": ["full_attention"] * 5, "num_attention_heads_per_layer": [6] * 5,
            "partial_rotary_factor": 0.5, "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "glm4_moe": ("glm4_moe", GLM4_MOE),
    "glm4_moe with biases, without norms of heads, weights that do not sum to one, tied": (
        "glm4_moe",
        GLM4_MOE | {
            "use_qk_norm": False, "attention_bias": True, "norm_topk_prob": False, "n_shared_experts": 2,
            "tie_word_embeddings": True, "first_k_dense_replace": 0,
        },
    ),
    "sarvam_moe": ("sarvam_moe", SARVAM),
    "sarvam_moe with biases, without norms of heads, two shared experts, tied": (
        "sarvam_moe",
        SARVAM | {
            "use_qk_norm": False, "attention_bias": True, "n_shared_experts": 2, "norm_topk_prob": False,
            "tie_word_embeddings": True,
        },
    ),
    "dots1": ("dots1", DOTS1),
    "dots1, a window in the last layer, biases": (
        "dots1",
        DOTS1 | {
            "sliding_window": 9, "max_window_layers": 1, "attention_bias": True, "norm_topk_prob": False,
            "num_key_value_heads": 2,
        },
    ),
    "afmoe": ("afmoe", AFMOE),
    "afmoe, a window in the last layer, embeddings as they are": (
        "afmoe",
        AFMOE | {
            "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"], "mup_enabled": False,
            "num_dense_layers": 0, "num_shared_experts": 1,
        },
    ),
    "exaone_moe": ("exaone_moe", EXAONE_MOE),
    "exaone_moe, experts before a dense layer": (
        "exaone_moe",
        EXAONE_MOE | {
            "num_hidden_layers": 2, "mlp_layer_types": ["sparse", "dense"], "num_shared_experts": 2,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "hunyuan_v1_moe": (
        "hunyuan_v1_moe",
        HUNYUAN_MOE | {
            "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 1e3},
        },
    ),
    "hunyuan_v1_moe with biases, untied": (
        "hunyuan_v1_moe",
        HUNYUAN_MOE | {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": False},
    ),
    "mellum": ("mellum", MELLUM | {"rope_parameters": mellum_rope(1e3)}),
    "mellum without windows, a dense layer, tied": (
        "mellum",
        MELLUM | {
            "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "mlp_layer_types": ["sparse", "dense"],
            "norm_topk_prob": False, "tie_word_embeddings": True, "attention_bias": True,
        },
    ),
    "cohere2_moe": ("cohere2_moe", COHERE2_MOE),
    "cohere2_moe, shared experts, softmax, RMS norms, first layers in a window, biases, untied": (
        "cohere2_moe",
        COHERE2_MOE | {
            "first_k_dense_replace": 2, "prefix_dense_sliding_window_pattern": 2, "num_shared_experts": 2,
            "shared_expert_combination_strategy": "sum", "expert_selection_fn": "softmax", "norm_topk_prob": False,
            "rms_norm_eps": 1e-3, "attention_bias": True, "tie_word_embeddings": False,
        },
    ),
    "cohere2_moe, averaged with shared experts, weights that do not sum to one": (
        "cohere2_moe",
        COHERE2_MOE | {
            "num_hidden_layers": 2, "first_k_dense_replace": 0, "num_shared_experts": 1, "norm_topk_prob": False,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "solar_open": ("solar_open", SOLAR_OPEN | {"n_shared_experts": 2, "routed_scaling_factor": 1.5}),
    "solar_open with biases, weights that do not sum to one, tied": (
        "solar_open",
        SOLAR_OPEN | {"attention_bias": True, "norm_topk_prob": False, "tie_word_embeddings": True},
    ),
    "hy_v3": ("hy_v3", HY_V3 | {"router_scaling_factor": 1.5}),
    "hy_v3, experts before a dense layer, biases, tied": (
        "hy_v3",
        HY_V3 | {"mlp_layer_types": ["sparse", "dense"], "attention_bias": True, "tie_word_embeddings": True},
    ),
    "minimax_m2": ("minimax_m2", MINIMAX_M2),
    "minimax_m2, whole heads, tied": (
        "minimax_m2",
        {"head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2},
    ),
    "flex_olmo": (
        "flex_olmo",
        {"num_experts": 6, "num_experts_per_tok": 3, "tie_word_embeddings": False, "pad_token_id": 0},
    ),
    "flex_olmo with biases, weights that sum to one": (
        "flex_olmo",
        {
            "num_experts": 5, "num_experts_per_tok": 2, "attention_bias": True, "norm_topk_prob": True,
            "pad_token_id": 0,
        },
    ),
}  # fmt: skip

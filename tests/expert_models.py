"""Random models of families with experts that a router scores by sigmoids, in configurations with every feature."""

from __future__ import annotations

from typing import Any

_EXPERTS = {"num_experts_per_tok": 3, "moe_intermediate_size": 32}
GLM4_MOE = _EXPERTS | {
    "head_dim": 32, "n_routed_experts": 6, "use_qk_norm": True, "routed_scaling_factor": 1.5, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
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

EXPERT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe": ("glm4_moe", GLM4_MOE),
    "glm4_moe with biases, without norms of heads, weights that do not sum to one, tied": (
        "glm4_moe",
        GLM4_MOE | {
            "use_qk_norm": False, "attention_bias": True, "norm_topk_prob": False, "n_shared_experts": 2,
            "tie_word_embeddings": True, "first_k_dense_replace": 0,
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
}  # fmt: skip

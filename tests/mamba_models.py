"""Random models of the families that have Mamba or Mamba 2, in configurations that have every feature of their rows."""

from __future__ import annotations

from typing import Any

# transformers lets no step in a prompt be shorter than time_step_min, though in an answer; others have no such limit.
NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention", "linear_attention"],
    "head_dim": 32, "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 2,
    "tie_word_embeddings": False, "time_step_min": 1e-30,
}  # fmt: skip
NEMOTRON_H_MOE = NEMOTRON_H | {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "moe"],
    "n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_group": 3, "topk_group": 2,
    "moe_shared_expert_intermediate_size": 64, "routed_scaling_factor": 2.5,
}  # fmt: skip
BAMBA = {
    "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_state": 16, "pad_token_id": 0,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
JAMBA = {
    "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "num_experts_per_tok": 1,
    "tie_word_embeddings": False, "mamba_d_state": 8, "pad_token_id": 0,
}  # fmt: skip
JAMBA_EXPERTS = JAMBA | {
    "num_experts": 5, "num_experts_per_tok": 3, "expert_layer_period": 3, "expert_layer_offset": 2,
}  # fmt: skip
FALCON_H1 = {
    "mamba_d_ssm": 96, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 16, "pad_token_id": 0,
    "mamba_norm_before_gate": False, "tie_word_embeddings": False,
}  # fmt: skip
FALCON_H1_MULTIPLIERS = {
    "lm_head_multiplier": 0.6, "embedding_multiplier": 2.5, "mlp_multipliers": [1.4, 0.6], "key_multiplier": 1.7,
    "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.8, "ssm_multipliers": [1.5, 0.8, 2.0, 0.6, 1.2],
    "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.7,
}  # fmt: skip

MAMBA_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba": ("bamba", BAMBA),
    "bamba, groups, biases of attention, untied": (
        "bamba",
        BAMBA | {
            "attn_layer_indices": [0, 2], "mamba_n_heads": 8, "mamba_n_groups": 2, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": False,
        },
    ),
    "jamba": ("jamba", JAMBA),
    "jamba with experts, other sizes of Mamba, tied": (
        "jamba",
        JAMBA_EXPERTS | {
            "attn_layer_offset": 0, "mamba_d_state": 16, "mamba_d_conv": 3, "mamba_expand": 1, "mamba_dt_rank": 7,
            "tie_word_embeddings": True,
        },
    ),
    "falcon_h1": ("falcon_h1", FALCON_H1 | FALCON_H1_MULTIPLIERS),
    "falcon_h1 with a norm in Mamba 2, biases, a head_dim of its own, tied": (
        "falcon_h1",
        FALCON_H1 | FALCON_H1_MULTIPLIERS | {
            "attention_in_multiplier": 1.0, "mamba_rms_norm": True, "attention_bias": True, "mlp_bias": True,
            "head_dim": 32, "tie_word_embeddings": True, "mamba_d_ssm": None, "mamba_n_groups": 1,
        },
    ),
    "nemotron_h": ("nemotron_h", NEMOTRON_H),
    "nemotron_h with experts": ("nemotron_h", NEMOTRON_H_MOE),
    "nemotron_h with experts and feed-forwards, weights that do not sum to one": (
        "nemotron_h",
        NEMOTRON_H_MOE | {
            "layers_block_type": ["full_attention", "moe", "linear_attention", "mlp"], "norm_topk_prob": False,
            "n_groups": 4, "conv_kernel": 3,
        },
    ),
}  # fmt: skip

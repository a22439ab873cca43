"""Random models of the families that have latent attention, in configurations that have every feature of their rows."""

from __future__ import annotations

from typing import Any

# Their inner norms have 1e-6 whatever the config says, in llama.cpp what it says.
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 24,
    "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
}  # fmt: skip
LATENT_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": list(range(1, 9)), "original_max_position_embeddings": 64,
}  # fmt: skip
DEEPSEEK = LATENT | {
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "n_routed_experts": 6, "num_local_experts": 6,
    "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_shared_experts": 2, "routed_scaling_factor": 1.7,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
# Each token has other groups, and does not choose the two best experts of all where they are in two bad ones.
IN_GROUPS = {"n_routed_experts": 8, "num_local_experts": 8, "n_group": 4, "topk_group": 2}
# Both of its scales of attention grow, so that the tables stay as they are and the scores do not.
DEEPSEEK_YARN = {
    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 0.7,
    "rope_theta": 1e4,
}  # fmt: skip

LATENT_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2, yarn": ("deepseek_v2", DEEPSEEK | {"rope_parameters": DEEPSEEK_YARN}),
    "deepseek_v2, queries of one matrix": ("deepseek_v2", DEEPSEEK | {"q_lora_rank": None, "n_shared_experts": 1}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK | IN_GROUPS | {"rope_parameters": DEEPSEEK_YARN | {"mscale": 1.0}}),
    "glm4_moe_lite": ("glm4_moe_lite", DEEPSEEK | {"mlp_layer_types": ["dense", "sparse", "sparse"]}),
    "sarvam_mla": ("sarvam_mla", DEEPSEEK | {"q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN}),
    "minicpm3": ("minicpm3", LATENT | {"scale_emb": 6, "scale_depth": 1.0, "dim_model_base": 32}),
    "minicpm3, tied": ("minicpm3", LATENT | {"v_head_dim": None, "tie_word_embeddings": True}),
    "minicpm3, longrope": ("minicpm3", LATENT | {"rope_parameters": LATENT_LONGROPE}),
    "youtu": ("youtu", LATENT),
}  # fmt: skip

"""Configs of a size that tests of ModelConfig change field by field."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig

CONFIG = ModelConfig(
    model_type="llama",
    vocab_size=100,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
)
LONGROPE = RopeScaling(
    rope_type="longrope",
    factor=4.0,
    original_max_position_embeddings=16,
    short_factor=(1.0, 1.0, 1.5, 2.0),
    long_factor=(1.0, 2.0, 3.0, 4.0),
)
EXPERTS: dict[str, Any] = {
    "layers_without_experts": (1,), "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "norm_topk_prob": False, "router_bias": True, "attention_sinks": True,
    "scoring_func": "sigmoid", "routed_scaling_factor": 2.5, "expert_choice_bias": True,
    "shared_expert_intermediate_size": 8, "norm_placement": "both", "expert_norms": True, "expert_scales": True,
}  # fmt: skip
LARGE = {
    "norm": "layer",
    "norm_placement": "both",
    "parallel_residual": True,
    "sub_norms": True,
    "embedding_norm": True,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
    "final_logit_softcapping": 30.0,
    "rope_local_theta": 1e3,
    "partial_rotary_factor": 0.5,
    "layers_without_rope": (1,),
    "attention_sinks": True,
    "layer_types": ("full_attention", "sliding_attention"),
    "sliding_window": 8,
    "attention_multiplier": 0.1,
    "attn_logit_softcapping": 50.0,
    "qk_norm_scope": "projection",
    "lm_head_bias": True,
    "norm_eps": 1e-6,
    "position": "learned",
    "rope_theta": 5e5,
    "rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    "hidden_act": "gelu",
    "mlp_gated": False,
    "mlp_bias": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "qk_norm": True,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_ids": (2, 7),
}
ENCODER = replace(CONFIG, position="relative", num_key_value_heads=4)
PAIR: dict[str, Any] = {
    "position": "learned",
    "num_key_value_heads": 4,
    "encoder": ENCODER,
    "decoder_start_token_id": 0,
}

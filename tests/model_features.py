"""One row for each feature of ModelConfig: what the tiny model has in its place."""

from __future__ import annotations

from make_tiny_model import CONFIG

from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.config import ModelConfig

LONGROPE = {
    "rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 128,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}  # fmt: skip

LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
MAMBA = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 48, "linear_key_head_dim": 8, "linear_value_head_dim": 1,
    "linear_conv_kernel_dim": 4, "mamba_dt_rank": 6,
}  # fmt: skip
LATENT = {
    "head_dim": 48, "num_key_value_heads": 1, "kv_lora_rank": 32, "qk_nope_head_dim": 24, "v_head_dim": 40,
    "attention_multiplier": 0.2,
}  # fmt: skip
MULTIPLIERS = {
    "attention_out": 0.7, "ssm_z": 1.5, "ssm_x": 0.8, "ssm_b": 2.0, "ssm_c": 0.6, "ssm_dt": 1.2, "ssm_out": 1.3,
    "mlp_gate": 1.6, "mlp_down": 0.4,
}  # fmt: skip
GEMMA4_FEATURES = {
    "norm_placement": "both", "qk_norm": True, "v_norm": True, "layer_scalar": True, "attention_multiplier": 1.0,
    "sliding_window": 6, "rope_local_theta": 100.0, "layer_types": ("sliding_attention", "full_attention"),
    "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "hidden_size_per_layer_input": 4,
    "final_logit_softcapping": 3.0,
    "rope_scaling": RopeScaling(rope_type="proportional", partial_rotary_factor=0.5),
}  # fmt: skip

STREAMS = {
    "norm_placement": "both", "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 200,
    "altup_num_inputs": 3, "altup_correct_scale": True, "laurel_rank": 8, "activation_sparsity_pattern": (0.9, 0.0),
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
OWN_NORMS = {
    "norm_placement": "both", "shared_expert_intermediate_size": 48, "expert_norms": True, "expert_scales": True,
}  # fmt: skip

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
    "queries that grow beyond the original context": {
        "llama_4_scaling_beta": 0.5,
        "rope_scaling": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32},
    },
    "queries that grow beyond the original context, longrope": {
        "llama_4_scaling_beta": 0.5, "rope_scaling": LONGROPE | {"original_max_position_embeddings": 32},
    },
    "layers without rope": {"num_hidden_layers": 3, "layers_without_rope": [0, 2]},
    "heads that attention does not turn, longrope, a layer without rope": {
        "head_dim": 24, "num_hidden_layers": 2, "layers_without_rope": [1],
        "rope_scaling": LONGROPE | {"short_factor": [1.0] * 12, "long_factor": [float(i) for i in range(1, 13)]},
    },
    "a window in every layer": {"sliding_window": 7},
    "a window in one layer": {
        "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"],
    },
    "a window in one layer, with a rope of its own": {
        "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"], "rope_local_theta": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "a window as long as the context": {"sliding_window": 1024},
    "layer norms without biases": {"norm": "layer_no_bias", "qk_norm": True},
    "convolutions": {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3, "qk_norm": True,
    },
    "convolutions over five tokens, with biases": {
        "num_hidden_layers": 3, "layer_types": ["full_attention", "conv", "full_attention"], "conv_L_cache": 5,
        "conv_bias": True,
    },
    "latent attention": {**LATENT, "q_lora_rank": 24},
    "latent attention, queries of one matrix, norms of 1 + weight, a window, sinks, a cap, yarn": {
        **LATENT, "norm": "rms_offset", "sliding_window": 6, "attention_sinks": True, "attn_logit_softcapping": 3.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    },
    "latent attention, the layers with experts, multipliers": {
        **LATENT, "q_lora_rank": 24, "residual_multiplier": 0.5, "num_experts": 4, "num_experts_per_tok": 2,
        "multipliers": {"attention_out": 0.7},
    },
    "latent attention, of which a few dimensions turn": {**LATENT, "kv_lora_rank": 40},
    "latent attention, of which a few dimensions turn, proportionally, queries of two matrices": {
        **LATENT, "kv_lora_rank": 24, "q_lora_rank": 24,
        "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    },
    "linear attention": {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "qk_norm": True, **LINEAR,
    },
    "linear attention, a key head for each value head, norms of 1 + weight, a residual multiplier": {
        "num_hidden_layers": 3, "layer_types": ["full_attention", "linear_attention", "conv"], **LINEAR,
        "linear_num_key_heads": 4, "linear_conv_kernel_dim": 2, "conv_L_cache": 3, "norm": "rms_offset",
        "residual_multiplier": 0.5,
    },
    "linear attention that takes back what it wrote, in layers with norms of their own": {
        "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"], **LINEAR,
        "linear_allow_neg_eigval": True, "linear_norm_eps": 1e-2, "linear_norm_placement": "pre",
        "norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection", "position": "none",
    },
    "Mamba": {
        "num_hidden_layers": 3, "layer_types": ["mamba", "full_attention", "mamba"], **MAMBA, "position": "none",
    },
    "Mamba without its norms, beside a convolution, norms of 1 + weight, a residual multiplier": {
        "num_hidden_layers": 3, "layer_types": ["full_attention", "mamba", "conv"], **MAMBA, "mamba_rms_norm": False,
        "linear_conv_kernel_dim": 2, "conv_L_cache": 3, "norm": "rms_offset", "residual_multiplier": 0.5,
    },
    "Mamba 2": {
        "num_hidden_layers": 3, "layer_types": ["mamba2", "full_attention", "mamba2"], **LINEAR,
    },
    "Mamba 2, one group, beside a convolution, norms of 1 + weight, a residual multiplier": {
        "num_hidden_layers": 3, "layer_types": ["full_attention", "mamba2", "conv"], **LINEAR,
        "linear_num_key_heads": 1, "linear_conv_kernel_dim": 2, "conv_L_cache": 3, "norm": "rms_offset",
        "residual_multiplier": 0.5,
    },
    "Mamba 2 beside attention, with biases and multipliers": {
        "layer_types": ["hybrid", "hybrid"], **LINEAR, "multipliers": MULTIPLIERS, "attention_bias": True,
        "attention_output_bias": True, "mlp_bias": True, "residual_multiplier": 0.5,
    },
    "Mamba 2 without its norm, beside attention in one layer": {
        "num_hidden_layers": 3, "layer_types": ["mamba2", "hybrid", "full_attention"], **LINEAR,
        "mamba_rms_norm": False, "norm_placement": "both", "qk_norm": True,
    },
    "one part in each block": {
        "num_hidden_layers": 6, **LINEAR, "mlp_gated": False, "hidden_act": "relu2", "position": "none",
        "layer_types": ["mamba2", "feed_forward", "full_attention", "feed_forward", "mamba2", "feed_forward"],
        "layers_without_feed_forward": [0, 2, 4],
    },
    "one part in some blocks, after a first feed-forward, with a residual multiplier": {
        "num_hidden_layers": 4, "layer_types": ["feed_forward", "full_attention", "conv", "full_attention"],
        "layers_without_feed_forward": [1, 2], "conv_L_cache": 3, "residual_multiplier": 0.5, "qk_norm": True,
    },
    "a gate behind attention": {"attention_output_gate": True, "attention_bias": True},
    "a softplus of a gate for each head, other heads and another part that turns in layers that see all": {
        "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "sliding_window": 7, "num_attention_heads": 6, "num_global_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "attention_output_gate": True, "attention_gate_per_head": True, "qk_norm": True,
        "attention_gate_act": "softplus", "partial_rotary_factor": 0.5, "rope_local_theta": 500.0,
        "local_partial_rotary_factor": 1.0, "attention_sinks": True,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "a gate for each head, beside convolutions and windows": {
        "num_hidden_layers": 3, "layer_types": ["conv", "sliding_attention", "full_attention"], "sliding_window": 7,
        "conv_L_cache": 7, "attention_output_gate": True, "attention_gate_per_head": True, "norm_placement": "both",
        "rope_local_theta": 500.0, "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    },
    "larger heads in the layers that see all, which turn in part": {
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 7,
        "rope_local_theta": 500.0, "global_head_dim": 48, "attention_multiplier": 0.5, "qk_norm": True,
        "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.4, "factor": 2.0},
    },
    "heads that turn in part, proportionally": {
        "head_dim": 32, "rope_scaling": {"rope_type": "proportional", "partial_rotary_factor": 0.75},
    },
    "keys as values in the layers that see all, values normed": {
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7, "attention_k_eq_v": True,
        "v_norm": True, "partial_rotary_factor": 0.5, "attention_bias": True,
    },
    "keys and values of earlier layers, with wider feed-forwards": {
        "num_hidden_layers": 5, "num_kv_shared_layers": 3, "sliding_window": 7, "use_double_wide_mlp": True,
        "qk_norm": True, "num_attention_heads": 4, "num_key_value_heads": 2,
        "layer_types": ["full_attention", *["sliding_attention"] * 3, "full_attention"],
    },
    "keys and values of the first layer in all others": {
        "num_hidden_layers": 3, "num_kv_shared_layers": 2, "attn_logit_softcapping": 0.5, "attention_bias": True,
    },
    "features of each layer's own": {"hidden_size_per_layer_input": 8, "norm_placement": "both", "mlp_gated": False},
    "features of each layer's own, norms of 1 + weight": {"hidden_size_per_layer_input": 24, "norm": "rms_offset"},
    "several residual streams, a way beside attention, gates that are nothing": STREAMS,
    "two residual streams, norms of 1 + weight": {
        "hidden_size_per_layer_input": 8, "altup_num_inputs": 2, "norm": "rms_offset",
    },
    "a way beside attention, norms of 1 + weight, gates that are nothing": {
        "laurel_rank": 4, "norm": "rms_offset", "activation_sparsity_pattern": (0.5, 0.75),
    },
    "a factor of each layer": {"layer_scalar": True, "hidden_size_per_layer_input": 8},
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
    "in parallel behind one norm, but for a feed-forward alone": {
        "parallel_residual": True, "norm_placement": "shared", "num_hidden_layers": 3,
        "layer_types": ["full_attention", "feed_forward", "full_attention"],
    },
    "norms of 1 + weight": {"norm": "rms_offset", "qk_norm": True, "embedding_norm": True},
    "layer norms of 1 + weight": {"norm": "layer_offset", "qk_norm": True, "embedding_norm": True},
    "layer norms without weights": {"norm": "layer_plain", "qk_norm": True, "embedding_norm": True},
    "norms without weights": {"norm": "rms_plain", "qk_norm": True, "embedding_norm": True},
    "query and key norms without weights": {"qk_norm": True, "qk_norm_weights": False},
    "query and key norms without weights over all heads, beside layer norms": {
        "qk_norm": True, "qk_norm_scope": "projection", "qk_norm_weights": False, "norm": "layer",
    },
    "query and key norms with weights of each head's own": {
        "qk_norm": True, "qk_norm_scope": "own_head", "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "query and key layer norms with weights of each head's own, of which a part turns": {
        "qk_norm": True, "qk_norm_scope": "own_head", "norm": "layer", "partial_rotary_factor": 0.25,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48,
    },
    "query and key norms over all heads": {
        "qk_norm": True, "qk_norm_scope": "projection", "num_attention_heads": 4, "num_key_value_heads": 2,
    },
    "query and key norms behind rope": {"qk_norm": True, "qk_norm_scope": "turned_head", "head_dim": 32},
    "query and key norms behind rope of a part of each head": {
        "qk_norm": True, "qk_norm_scope": "turned_head", "partial_rotary_factor": 0.25, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "query and key norms of turned heads, and of some that do not turn": {
        "qk_norm": True, "qk_norm_scope": "turned_head", "layers_without_rope": [1],
    },
    "query and key norms behind longrope": {
        "qk_norm": True, "qk_norm_scope": "turned_head", "rope_scaling": LONGROPE,
    },
    "a norm of the embeddings": {"embedding_norm": True, "norm": "layer"},
    "a norm of the embeddings, before positions are added": {
        "embedding_norm": True, "embedding_norm_first": True, "position": "learned", "embedding_multiplier": 0.01,
    },
    "a bias of the head": {"lm_head_bias": True, "tie_word_embeddings": False},
    "a bias of the tied head, scaled and capped": {
        "lm_head_bias": True, "logits_scaling": 2.0, "final_logit_softcapping": 3.0,
    },
    "a head that reads a norm of a projection": {"head_transform": True, "norm": "layer_offset", "lm_head_bias": True},
    "layers without a norm before attention": {"layers_without_input_norm": [0], "embedding_norm": True},
    "relu squared": {"hidden_act": "relu2", "mlp_gated": False},
    "norms before the last projections": {"sub_norms": True, "hidden_act": "relu2"},
    "norms before the last projections, without a gate, of heads that are wider": {
        "sub_norms": True, "mlp_gated": False, "head_dim": 32, "norm": "layer",
    },
    "xielu": {"hidden_act": "xielu", "mlp_gated": False, "mlp_bias": True},
    "xielu of a gate": {"hidden_act": "xielu"},
    "experts": EXPERTS,
    "experts, weights that do not sum to one": EXPERTS | {"norm_topk_prob": False, "moe_intermediate_size": 24},
    "experts in one layer, with biases": EXPERTS | {
        "layers_without_experts": [0], "mlp_bias": True, "router_bias": True,
    },
    "experts with a clamped gate": EXPERTS | {
        "mlp_bias": True, "router_bias": True, "swiglu_limit": 0.4, "swiglu_alpha": 1.7,
    },
    "experts weighted by those close to them": EXPERTS | {"scoring_func": "sparsemixer", "norm_topk_prob": False},
    "experts weighted by a sigmoid": EXPERTS | {"scoring_func": "sigmoid"},
    "experts chosen in groups": {
        "num_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "scoring_func": "sigmoid",
        "expert_choice_bias": True, "norm_topk_prob": False,
    },
    "experts in groups, without a bias, of products of their own": {
        "num_experts": 9, "num_experts_per_tok": 2, "n_group": 3, "topk_group": 1, "hidden_act": "gelu",
    },
    "experts chosen with a bias": EXPERTS | {"expert_choice_bias": True, "routed_scaling_factor": 2.5},
    "experts weighted by a sigmoid, chosen with a bias, weights that do not sum to one": EXPERTS | {
        "scoring_func": "sigmoid", "expert_choice_bias": True, "norm_topk_prob": False, "routed_scaling_factor": 0.5,
    },
    "experts behind a residual multiplier": EXPERTS | {"residual_multiplier": 0.3},
    "experts beside a shared one, of which a token takes a share": EXPERTS | {
        "shared_expert_intermediate_size": 48, "shared_expert_gate": True,
    },
    "experts beside a shared one, behind a residual multiplier": EXPERTS | {
        "residual_multiplier": 0.3, "shared_expert_intermediate_size": 48, "routed_scaling_factor": 2.5,
    },
    "experts behind multipliers, beside a shared one": EXPERTS | {
        "shared_expert_intermediate_size": 48, "mlp_bias": True, "multipliers": MULTIPLIERS,
    },
    "experts gated by gelu": EXPERTS | {"hidden_act": "gelu_pytorch_tanh"},
    "experts gated by relu, weighted by a sigmoid, chosen with a bias, with biases": EXPERTS | {
        "hidden_act": "relu", "scoring_func": "sigmoid", "expert_choice_bias": True, "norm_topk_prob": False,
        "routed_scaling_factor": 0.5, "router_bias": True, "mlp_bias": True,
    },
    "experts with norms and factors of their own": EXPERTS | OWN_NORMS | {"residual_multiplier": 0.3},
    "experts with norms and factors of their own, gated by gelu, the one beside them wider in some layers": {
        **EXPERTS, **OWN_NORMS, "hidden_act": "gelu", "router_bias": True, "mlp_bias": True, "norm": "rms_offset",
        "num_hidden_layers": 3, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "shared_expert_gate": True,
    },
    "attention sinks": {"attention_sinks": True, "num_attention_heads": 4, "num_key_value_heads": 2},
    "attention sinks, in a window, without rope": {
        "attention_sinks": True, "sliding_window": 7, "layers_without_rope": [1],
    },
    "attention sinks, longrope": {"attention_sinks": True, "rope_scaling": LONGROPE},
    "learned positions": {"position": "learned"},
    "sinusoidal positions": {"position": "sinusoidal"},
    "sinusoidal positions, all sines first": {"position": "sinusoidal_halves"},
    "sinusoidal positions, as fairseq has them": {"position": "sinusoidal_fairseq"},
    "relative positions": {"position": "relative"},
    "relative positions of each layer's own": {"position": "relative", "relative_attention_per_layer": True},
    "relative positions of few buckets, beyond the largest distance, in a window": {
        "position": "relative", "relative_attention_num_buckets": 6, "relative_attention_max_distance": 20,
        "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 30,
    },
    "falling scores": {"position": "alibi"},
    "falling scores of six heads, in a window": {
        "position": "alibi", "num_attention_heads": 6, "num_key_value_heads": 2, "sliding_window": 30,
    },
    "falling scores, multiplied": {"position": "alibi", "alibi_multiplier": 0.25},
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

# The rows in which a token has another place, or a layer sees or keeps something else of other tokens: all else is
# computed token by token. Experts are not, where those of several tokens are computed at once.
_OF_OTHER_TOKENS = {
    "position", "rope_scaling", "layers_without_rope", "layer_types", "sliding_window", "kv_lora_rank", "conv_L_cache",
    "linear_num_key_heads", "num_kv_shared_layers", "attention_sinks", "attn_logit_softcapping",
}  # fmt: skip
ACROSS_TOKENS = {
    name: features
    for name, features in FEATURES.items()
    if name in ("tiny", "experts") or _OF_OTHER_TOKENS & features.keys()
}


def config_with(features: dict) -> ModelConfig:
    return ModelConfig.from_dict(CONFIG.to_dict() | features)

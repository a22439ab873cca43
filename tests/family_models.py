"""Random models of each family, in configurations that have every feature of its row."""

from __future__ import annotations

from typing import Any

import torch
from expert_models import EXPERT_MODELS
from gguf_tensors import CHOICE_BIASES
from hub_models import HUB_MODELS
from latent_models import LATENT_MODELS
from mamba_models import MAMBA_MODELS
from older_models import OLDER_MODELS
from torch import nn

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": list(range(1, 9))}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": LONGROPE | {"original_max_position_embeddings": 64, "factor": 16.0},
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}

QWEN3_MOE = {
    "head_dim": 16, "num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
}  # fmt: skip
OLMOE = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 3, "pad_token_id": 0}
# A limit that clamps many of these values, a window and an original context shorter than the text.
GPT_OSS = {
    "head_dim": 32, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9, "swiglu_limit": 0.7,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 8.0, "rope_theta": 150000.0, "original_max_position_embeddings": 64,
        "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0,
    },
}  # fmt: skip

GRANITE_MOE = {
    "num_local_experts": 5, "num_experts_per_tok": 2, "attention_multiplier": 0.25, "embedding_multiplier": 6.0,
    "residual_multiplier": 0.5, "logits_scaling": 3.0,
}  # fmt: skip
GRANITE_SWA = {
    "sliding_window": 9, "attention_multiplier": 0.25, "embedding_multiplier": 6.0, "residual_multiplier": 0.5,
    "logits_scaling": 3.0, "tie_word_embeddings": True,
}  # fmt: skip
GRANITE4 = {
    "layer_types": ["full_attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 80, "mamba_n_heads": 4,
    "attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 3.0,
}  # fmt: skip
GRANITE4_H = GRANITE4 | {
    "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 16,
}  # fmt: skip
# As MobileLLM-R1's: every layer turns its heads, and sees all tokens.
LLAMA4 = {
    "head_dim": 16, "intermediate_size": 48, "intermediate_size_mlp": 96, "moe_layers": [], "num_local_experts": 0,
    "no_rope_layers": [1, 1], "layer_types": ["full_attention"] * 2, "attn_temperature_tuning": False,
}  # fmt: skip
MINISTRAL3 = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
LFM2 = {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}
LFM2_MOE = {
    "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_experts": 6,
    "num_experts_per_tok": 3, "num_dense_layers": 1, "moe_intermediate_size": 32,
}  # fmt: skip
LFM3 = {"num_hidden_layers": 5, "head_dim": 32, "sliding_window": 9, "pad_token_id": 0}
ERNIE4_5_MOE = {
    "num_hidden_layers": 3, "intermediate_size": 128, "moe_intermediate_size": 32, "moe_num_experts": 5, "moe_k": 2,
    "moe_num_shared_experts": 2,
}  # fmt: skip
QWEN3_5 = {
    "num_hidden_layers": 2, "full_attention_interval": 2, "head_dim": 64, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24, "pad_token_id": 0,
    "rms_norm_eps": 1e-3,
}  # fmt: skip
QWEN3_5_EPSILON = {"rms_norm_eps": 1e-6}  # llama.cpp takes it for the lengths of queries and keys too
QWEN3_5_MOE = QWEN3_5 | {
    "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
    "layer_types": ["full_attention", "linear_attention"],
}  # fmt: skip
APERTUS_ROPE = LLAMA3 | {"rope_theta": 1e4}
OLMO3 = {
    "num_hidden_layers": 4, "sliding_window": 9, "tie_word_embeddings": False, "attention_bias": True,
    "rope_parameters": {
        "full_attention": ROPES["yarn"] | {"rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    },
}  # fmt: skip
OLMO_HYBRID = {
    "num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2, "pad_token_id": 0,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 24,
    "tie_word_embeddings": False,
}  # fmt: skip
# The last three layers look at the keys and values of earlier ones, one of each kind.
GEMMA4 = {
    "num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 3, "sliding_window": 9, "head_dim": 16, "global_head_dim": 32,
    "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 320, "use_double_wide_mlp": True,
}  # fmt: skip
GEMMA4_EXPERTS = {
    "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 9, "head_dim": 16, "global_head_dim": 64, "num_global_key_value_heads": 1,
    "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 320,
    "enable_moe_block": True, "num_experts": 6, "top_k_experts": 3, "moe_intermediate_size": 32,
}  # fmt: skip
GEMMA3N = {
    "num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 3, "sliding_window": 9, "head_dim": 16, "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 320, "laurel_rank": 32, "pad_token_id": 0,
    "activation_sparsity_pattern": [0.8, 0.95, 0.0, 0.0, 0.5, 0.0],
}  # fmt: skip

# Each text of 150 tokens is longer than the windows and than the original contexts.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, heads that attention does not turn": ("llama", {"head_dim": 24}),
    **{f"llama, {name}": ("llama", {"rope_parameters": rope | {"rope_theta": 1e4}}) for name, rope in ROPES.items()},
    "iquestcoder": ("iquestcoder", {"head_dim": 32, "tie_word_embeddings": False}),
    "llama4": ("llama4_text", LLAMA4),
    "llama4, chunks as long as the context, a layer without rope, without norms, biases, untied": (
        "llama4_text",
        LLAMA4 | {
            "layer_types": None, "attention_chunk_size": 4096, "max_position_embeddings": 4096, "use_qk_norm": False,
            "no_rope_layers": [1, 0], "attention_bias": True, "tie_word_embeddings": False, "head_dim": 32,
        },
    ),
    "mistral": ("mistral", {"sliding_window": None, "tie_word_embeddings": False}),
    "mistral with a head_dim of its own": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral in a window": ("mistral", {"sliding_window": 9}),
    "ministral": (
        "ministral",
        {
            "sliding_window": 9, "head_dim": 32, "num_hidden_layers": 3,
            "layer_types": ["full_attention", *["sliding_attention"] * 2],
        },
    ),
    "ministral3": ("ministral3", {"head_dim": 16, "rope_parameters": MINISTRAL3 | {"llama_4_scaling_beta": 0.5}}),
    "ministral3 in a window": (
        "ministral3",
        {"head_dim": 32, "rope_parameters": MINISTRAL3 | {"mscale": 0.5}, "sliding_window": 9},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, a window from the second layer on": ("qwen2", WINDOW),
    "qwen2, untied, another base": (
        "qwen2",
        {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, a window in the first layer": (
        "qwen3",
        {"head_dim": 16, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "qwen3 with biases, a head_dim of its own, untied": (
        "qwen3",
        {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "smollm3, windows without rope": (
        "smollm3",
        {"no_rope_layers": [1, 0], **WINDOW, "attention_bias": True, "pad_token_id": 0},
    ),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma with biases": ("gemma", {"head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "gemma2, heads that attention does not turn": ("gemma2", {"head_dim": 8, "sliding_window": 9}),
    "gemma2 without soft-caps, a head_dim of its own": (
        "gemma2",
        {"head_dim": 32, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3_text": (
        "gemma3_text",
        {"head_dim": 32, "sliding_window": 9, "num_hidden_layers": 3, "sliding_window_pattern": 3},
    ),
    "gemma3_text, linear rope of the full layers": (
        "gemma3_text",
        {
            "head_dim": 16, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3n_text": ("gemma3n_text", GEMMA3N),
    "gemma3n_text, two streams, a smaller table of features, no shared keys, untied": (
        "gemma3n_text",
        {
            "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
            "sliding_window": 9, "head_dim": 32, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 300,
            "laurel_rank": 8, "pad_token_id": 3, "altup_num_inputs": 2, "tie_word_embeddings": False,
            "final_logit_softcapping": 2.0, "intermediate_size": [96, 96],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5},
            },
        },
    ),
    "gemma4_text": ("gemma4_text", GEMMA4),
    "gemma4_text, keys as values in the layers that see all, a soft-cap": (
        "gemma4_text",
        {
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 9, "head_dim": 16, "global_head_dim": 64, "num_global_key_value_heads": 1,
            "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
                "full_attention": {
                    "rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e5, "factor": 2.0,
                },
            },
        },
    ),
    "gemma4_text with experts": ("gemma4_text", GEMMA4_EXPERTS),
    "gemma4_text with experts, shared keys, features": (
        "gemma4_text",
        GEMMA4 | {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 48},
    ),
    "phi": ("phi", {"partial_rotary_factor": 0.5, "tie_word_embeddings": False}),
    "phi, tied, query and key norms": ("phi", {"partial_rotary_factor": 0.25, "qk_layernorm": True}),
    "phi3": ("phi3", {"sliding_window": 9, "tie_word_embeddings": False, "pad_token_id": 0}),
    "phi3, longrope": (
        "phi3",
        {"original_max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4} | LONGROPE, "pad_token_id": 0},
    ),
    "phi3, longrope of a part of each head": (
        "phi3",
        {
            "original_max_position_embeddings": 64, "pad_token_id": 0, "partial_rotary_factor": 0.75,
            "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
                "short_factor": [1.0 + i / 10 for i in range(12)], "long_factor": list(range(1, 13)),
            },
        },
    ),
    "nemotron": ("nemotron", {"tie_word_embeddings": False, "head_dim": 32}),
    "nemotron with biases, turning three quarters": (
        "nemotron",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "partial_rotary_factor": 0.75, "norm_eps": 1e-3},
    ),
    "olmo": ("olmo", {"tie_word_embeddings": False, "pad_token_id": 0}),
    "olmo with biases, tied": ("olmo", {"attention_bias": True, "pad_token_id": 0}),
    "olmo2": ("olmo2", {"tie_word_embeddings": False}),
    "olmo3": ("olmo3", {"tie_word_embeddings": False, "num_hidden_layers": 4, "sliding_window": 9}),
    "olmo3, YaRN in the full layers, another base in the windows": ("olmo3", OLMO3),
    "olmo3, every layer in a window": (
        "olmo3",
        OLMO3 | {"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2},
    ),
    "olmo_hybrid": ("olmo_hybrid", OLMO_HYBRID | {"rope_parameters": {"rope_theta": None, "rope_type": "default"}}),
    "olmo_hybrid, rates up to one, rope, biases, tied": (
        "olmo_hybrid",
        OLMO_HYBRID | {
            "linear_allow_neg_eigval": False, "attention_bias": True, "tie_word_embeddings": True,
            "linear_num_key_heads": 4, "layer_types": None, "rms_norm_eps": 1e-3,
        },
    ),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.3, "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 3.0,
        },
    ),
    "granite with biases, untied": (
        "granite",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "residual_multiplier": 0.4},
    ),
    "granitemoe": ("granitemoe", GRANITE_MOE),
    "granitemoe with biases, untied": (
        "granitemoe",
        GRANITE_MOE | {"attention_bias": True, "tie_word_embeddings": False, "num_experts_per_tok": 4},
    ),
    "granitemoeshared": ("granitemoeshared", GRANITE_MOE | {"shared_intermediate_size": 48}),
    "granitemoehybrid with experts": (
        "granitemoehybrid",
        GRANITE4 | {"num_local_experts": 5, "num_experts_per_tok": 3, "position_embedding_type": "rope"},
    ),
    "granitemoehybrid": ("granitemoehybrid", GRANITE4 | {"position_embedding_type": "rope"}),
    "granitemoehybrid without rope, untied": ("granitemoehybrid", GRANITE4 | {"tie_word_embeddings": False}),
    "granitemoehybrid with Mamba": ("granitemoehybrid", GRANITE4_H),
    "granitemoehybrid with Mamba, groups, experts and rope, untied": (
        "granitemoehybrid",
        GRANITE4_H | {
            "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_conv": 3, "num_local_experts": 5,
            "num_experts_per_tok": 3, "position_embedding_type": "rope", "tie_word_embeddings": False,
        },
    ),
    "hyperclovax": (
        "hyperclovax",
        {
            "embedding_multiplier": 6.0, "residual_multiplier": 0.4, "logits_scaling": 0.3, "attention_multiplier": 0.3,
            "tie_word_embeddings": False,
        },
    ),
    "hyperclovax without norms behind, biases": (
        "hyperclovax",
        {"use_post_norm": False, "attention_bias": True, "mlp_bias": True},
    ),
    "granite_swa": (
        "granite_swa",
        GRANITE_SWA | {"num_hidden_layers": 5, "layer_rope_theta": [1e4, 1e3, 1e3, 0, 1e4]},
    ),
    "granite_swa, one base, biases, untied": (
        "granite_swa",
        GRANITE_SWA | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "granitemoe_swa": (
        "granitemoe_swa",
        GRANITE_SWA | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 64},
    ),
    "apertus": ("apertus", {"tie_word_embeddings": False, "pad_token_id": 0, "rope_parameters": APERTUS_ROPE}),
    "apertus with biases, tied": ("apertus", {"attention_bias": True, "pad_token_id": 0, "rms_norm_eps": 1e-3}),
    "apertus1p5_text": (
        "apertus1p5_text",
        {"vocab_size": 352, "output_vocab_size": 320, "pad_token_id": 0, "tie_word_embeddings": False},
    ),
    "apertus1p5_text whose head knows all tokens, biases": (
        "apertus1p5_text",
        {"attention_bias": True, "pad_token_id": 0, "rope_parameters": APERTUS_ROPE, "tie_word_embeddings": False},
    ),
    "arcee": ("arcee", {"tie_word_embeddings": False}),
    "arcee with biases, a head_dim of its own": ("arcee", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "ernie4_5": ("ernie4_5", {"head_dim": 16}),
    "ernie4_5 with biases, untied": ("ernie4_5", {"head_dim": 32, "use_bias": True, "tie_word_embeddings": False}),
    "ernie4_5_moe": ("ernie4_5_moe", ERNIE4_5_MOE),
    "ernie4_5_moe, experts in every second layer, none shared, untied": (
        "ernie4_5_moe",
        ERNIE4_5_MOE | {
            "moe_layer_start_index": 0, "moe_layer_interval": 2, "moe_num_shared_experts": 0,
            "tie_word_embeddings": False,
        },
    ),
    "bitnet": ("bitnet", {"pad_token_id": 0}),
    "bitnet with biases, untied": ("bitnet", {"attention_bias": True, "tie_word_embeddings": False, "pad_token_id": 0}),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere with norms of heads": ("cohere", {"use_qk_norm": True, "logit_scale": 0.5}),
    "cohere with biases, untied": (
        "cohere",
        {"attention_bias": True, "tie_word_embeddings": False, "layer_norm_eps": 1e-3},
    ),
    "cohere2": ("cohere2", {"num_hidden_layers": 4, "sliding_window": 9, "logit_scale": 0.5}),
    "cohere2, a window in the last layer, biases": (
        "cohere2",
        {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 9, "attention_bias": True},
    ),
    "cwm": ("cwm", {"head_dim": 32, "sliding_window": 9, "rope_parameters": LLAMA3 | {"rope_theta": 1e4}}),
    "jais2": ("jais2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "jais2 without biases, tied": ("jais2", {"attention_bias": False, "mlp_bias": False, "layer_norm_eps": 1e-3}),
    "vaultgemma": (
        "vaultgemma",
        {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0},
    ),
    "exaone": ("exaone", {"tie_word_embeddings": False}),
    "exaone, llama3, biases": (
        "exaone",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3 | {"rope_theta": 1e4}},
    ),
    "exaone4": ("exaone4", {"tie_word_embeddings": False, "num_hidden_layers": 4, "sliding_window": 9}),
    "exaone4 without windows, llama3": (
        "exaone4",
        {
            "sliding_window": None, "layer_types": ["full_attention"] * 2,
            "rope_parameters": LLAMA3 | {"rope_theta": 1e4},
        },
    ),
    "helium": ("helium", {"head_dim": 16, "tie_word_embeddings": False, "pad_token_id": 0}),
    "helium with biases, tied": ("helium", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "internlm3": ("internlm3", {"head_dim": 16, "tie_word_embeddings": False}),
    "internlm3 with biases, a head_dim of its own": ("internlm3", {"head_dim": 32, "qkv_bias": True, "bias": True}),
    "hunyuan_v1_dense": (
        "hunyuan_v1_dense",
        {
            "head_dim": 32, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 1e3},
        },
    ),
    "hunyuan_v1_dense with biases, untied": (
        "hunyuan_v1_dense",
        {"head_dim": 16, "pad_token_id": 0, "attention_bias": True, "tie_word_embeddings": False},
    ),
    "lfm2": ("lfm2", LFM2),
    "lfm2 with biases, convolutions over four tokens, untied": (
        "lfm2",
        LFM2 | {
            "conv_L_cache": 4, "conv_bias": True, "tie_word_embeddings": False, "block_auto_adjust_ff_dim": True,
            "block_multiple_of": 16, "norm_eps": 1e-3, "layer_types": ["full_attention", "conv", "full_attention"],
        },
    ),
    "lfm3": ("lfm3", LFM3),
    "lfm3 without gates and norms behind, convolutions over three tokens, untied": (
        "lfm3",
        LFM3 | {
            "num_hidden_layers": 3, "use_sandwich_norm": False, "use_attention_gate": False, "conv_L_cache": 3,
            "conv_bias": True, "layer_types": ["full_attention", "conv", "full_attention"],
            "tie_word_embeddings": False,
        },
    ),
    "lfm2_moe": ("lfm2_moe", LFM2_MOE),
    "lfm2_moe, scaled weights that do not sum to one, no bias of the choice, untied": (
        "lfm2_moe",
        LFM2_MOE | {
            "norm_topk_prob": False, "use_expert_bias": False, "routed_scaling_factor": 0.7,
            "tie_word_embeddings": False, "num_dense_layers": 0,
        },
    ),
    "seed_oss": ("seed_oss", {"head_dim": 32, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "seed_oss, other biases, untied": (
        "seed_oss",
        {
            "head_dim": 16, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True,
            "tie_word_embeddings": False, "attention_dropout": 0.0, "residual_dropout": 0.0,
        },
    ),
    "qwen3_5": ("qwen3_5_text", QWEN3_5),
    "qwen3_5 with experts": ("qwen3_5_moe_text", QWEN3_5_MOE),
    "qwen3_5 with biases, a key head for each value head, tied": (
        "qwen3_5_text",
        QWEN3_5 | {
            "num_hidden_layers": 4, "layer_types": ["full_attention", "linear_attention"] * 2,
            "linear_num_key_heads": 4, "head_dim": 32,
            "linear_conv_kernel_dim": 3, "attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3_next": ("qwen3_next", QWEN3_5_MOE | {"tie_word_embeddings": False}),
    "qwen3_next, a layer without experts, weights that do not sum to one, a key head for each value head": (
        "qwen3_next",
        QWEN3_5_MOE | {
            "mlp_only_layers": [0], "norm_topk_prob": False, "linear_num_key_heads": 4, "rms_norm_eps": 1e-4,
        },
    ),
    "glm": ("glm", {"head_dim": 16, "pad_token_id": 0}),
    "glm, all of each head, without biases, tied": (
        "glm",
        {
            "head_dim": 32, "partial_rotary_factor": 1.0, "attention_bias": False, "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "glm4": ("glm4", {"head_dim": 16, "pad_token_id": 0}),
    "glm4, three quarters of each head": (
        "glm4",
        {
            "head_dim": 32, "partial_rotary_factor": 0.75, "attention_bias": False, "rms_norm_eps": 1e-3,
            "tie_word_embeddings": True, "pad_token_id": 0,
        },
    ),
    "nanochat": ("nanochat", {"tie_word_embeddings": False}),
    "nanochat, llama3's rope": ("nanochat", {"rope_parameters": LLAMA3 | {"rope_theta": 1e4}}),
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE),
    "qwen3_moe, a dense layer, a window, biases": (
        "qwen3_moe",
        QWEN3_MOE | {
            "norm_topk_prob": True, "mlp_only_layers": [0], "attention_bias": True, "use_sliding_window": True,
            "sliding_window": 9, "tie_word_embeddings": False,
        },
    ),
    "qwen3_moe, experts in every second layer": ("qwen3_moe", QWEN3_MOE | {"decoder_sparse_step": 2}),
    "olmoe": ("olmoe", OLMOE),
    "olmoe, weights that sum to one": ("olmoe", OLMOE | {"norm_topk_prob": True, "tie_word_embeddings": False}),
    **EXPERT_MODELS,
    **OLDER_MODELS,
    **HUB_MODELS,
    **LATENT_MODELS,
    **MAMBA_MODELS,
    "gpt_oss": ("gpt_oss", GPT_OSS),
    "gpt_oss, every layer in full, untied": (
        "gpt_oss",
        GPT_OSS | {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": False, "swiglu_limit": 7.0},
    ),
}  # fmt: skip


def randomize(model: nn.Module) -> None:
    """Fill a model of transformers with random numbers: norms near one, weights large enough that every feature shows
    in the logits, steps of linear attention as small as in real models, since transformers keeps few digits of large
    ones.
    """
    for name, parameter in model.named_parameters():
        middle = -4.0 if name.endswith("dt_bias") else 1.0 if parameter.ndim == 1 else 0.0
        parameter.data = 0.15 * torch.randn_like(parameter) + middle
    for name, buffer in model.named_buffers():
        if name.endswith(CHOICE_BIASES):
            buffer.normal_(std=0.3)
        if name.endswith(".layer_scalar"):
            buffer.data = 1 + 0.15 * torch.randn_like(buffer)

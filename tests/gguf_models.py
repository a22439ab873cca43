"""Random models of each family that llama.cpp knows, as it names and knows them."""

from __future__ import annotations

from typing import Any

from expert_models import (
    AFMOE,
    COHERE2_MOE,
    DOTS1,
    EXAONE_MOE,
    GLM4_MOE,
    HUNYUAN_MOE,
    HY_V3,
    LAGUNA,
    MELLUM,
    MINIMAX_M2,
    QWEN2_MOE,
    mellum_rope,
)
from family_models import (
    ERNIE4_5_MOE,
    GEMMA3N,
    GEMMA4,
    GEMMA4_EXPERTS,
    GPT_OSS,
    GRANITE4_H,
    GRANITE_MOE,
    GRANITE_SWA,
    LFM2,
    LFM2_MOE,
    LLAMA4,
    LONGROPE,
    MINISTRAL3,
    OLMOE,
    QWEN3_5,
    QWEN3_5_EPSILON,
    QWEN3_5_MOE,
    QWEN3_MOE,
    ROPES,
)
from hub_models import DEEPSEEK_MOE, LING, LING_2, MINICPM, QWEN
from hub_models import LONGROPE as MINICPM_LONGROPE
from latent_models import DEEPSEEK, DEEPSEEK_YARN, IN_GROUPS, LATENT, LATENT_LONGROPE
from mamba_models import FALCON_H1, JAMBA, JAMBA_EXPERTS, NEMOTRON_H, NEMOTRON_H_MOE
from older_models import FALCON_7B, FALCON_11B, GPT_BIGCODE, MPT, STABLELM_12B

IN_BLOCKS = {"q_lora_rank": 32, "qk_nope_head_dim": 32}  # matrices of latent attention, of which ggml makes blocks

# Those of `pair_models.MODELS` that it knows, and what it calls them.
GGUF_PAIRS = {
    "t5": "t5", "t5 v1.1, untied": "t5", "t5 without gates, few buckets": "t5", "mt5, untied, without gates": "t5",
    "umt5, untied": "t5", "umt5, one layer before three": "t5",
}  # fmt: skip

# As llama.cpp names and knows them: without biases on Qwen3 and Granite, a Mistral as a Llama, a Gemma whose scores are
# scaled by its head, a SmolLM3 with every fourth layer without rope.
GGUF_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama4": ("llama4_text", "llama4", LLAMA4),
    "mistral": ("mistral", "llama", {"sliding_window": None}),
    "qwen": ("qwen", "qwen", QWEN),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2, untied, another base": (
        "qwen2",
        "qwen2",
        {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": ("qwen3", "qwen3", {"head_dim": 16}),
    "qwen3 with a head_dim of its own": ("qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    "the text part of Qwen2-VL": ("qwen2", "qwen2vl", {}),
    "the text part of Qwen3-VL": ("qwen3", "qwen3vl", {"head_dim": 16}),
    "the text part of Qwen3-VL with experts": ("qwen3_moe", "qwen3vlmoe", QWEN3_MOE | {"norm_topk_prob": True}),
    "the text part of Mistral Small 3": ("mistral", "mistral3", {"sliding_window": None}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 4, "pad_token_id": 0}),
    "gemma2": ("gemma2", "gemma2", {"head_dim": 32, "sliding_window": 9, "query_pre_attn_scalar": 32}),
    "gemma3_text": (
        "gemma3_text",
        "gemma3",
        {
            "head_dim": 32, "sliding_window": 9, "query_pre_attn_scalar": 32, "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3n_text": ("gemma3n_text", "gemma3n", GEMMA3N),
    "gemma4_text": ("gemma4_text", "gemma4", GEMMA4),
    "gemma4_text, keys as values": (
        "gemma4_text",
        "gemma4",
        {
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 9, "head_dim": 16, "global_head_dim": 64, "num_global_key_value_heads": 1,
            "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "final_logit_softcapping": 2.0,
            "vocab_size_per_layer_input": 320,
        },
    ),
    "gemma4_text with experts": ("gemma4_text", "gemma4", GEMMA4_EXPERTS),
    "phi": ("phi", "phi2", {"partial_rotary_factor": 0.5, "tie_word_embeddings": False}),
    "phi3": ("phi3", "phi3", {"sliding_window": None, "pad_token_id": 0}),
    "phi3, longrope": (
        "phi3",
        "phi3",
        {"original_max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4} | LONGROPE, "pad_token_id": 0},
    ),
    "nemotron": ("nemotron", "nemotron", {"tie_word_embeddings": False, "mlp_bias": True}),
    "olmo": ("olmo", "olmo", {"tie_word_embeddings": False, "pad_token_id": 0}),
    "olmo2": ("olmo2", "olmo2", {"tie_word_embeddings": False}),
    "olmo3": (
        "olmo3",
        "olmo2",
        {
            "tie_word_embeddings": False, "num_hidden_layers": 4, "sliding_window": 9,
            "rope_parameters": {
                "full_attention": ROPES["yarn"] | {"rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e5},
            },
        },
    ),
    "granite": (
        "granite",
        "granite",
        {
            "attention_multiplier": 0.25, "embedding_multiplier": 6.0, "residual_multiplier": 0.5,
            "logits_scaling": 3.0,
        },
    ),
    "granitemoe": ("granitemoe", "granitemoe", GRANITE_MOE),
    "granitemoeshared": ("granitemoeshared", "granitemoe", GRANITE_MOE | {"shared_intermediate_size": 64}),
    "granitemoehybrid with Mamba": ("granitemoehybrid", "granitehybrid", GRANITE4_H | {"shared_intermediate_size": 96}),
    "granitemoehybrid with Mamba, experts and rope, untied": (
        "granitemoehybrid",
        "granitehybrid",
        GRANITE4_H | {
            "num_local_experts": 5, "num_experts_per_tok": 3, "position_embedding_type": "rope",
            "shared_intermediate_size": 64, "tie_word_embeddings": False,
        },
    ),
    "jamba": ("jamba", "jamba", JAMBA),
    "jamba with experts": ("jamba", "jamba", JAMBA_EXPERTS),
    "falcon_h1": ("falcon_h1", "falcon-h1", FALCON_H1),
    "falcon_h1 with a norm in Mamba 2, tied": (
        "falcon_h1",
        "falcon-h1",
        FALCON_H1 | {"mamba_rms_norm": True, "head_dim": 32, "tie_word_embeddings": True},
    ),
    "nemotron_h": ("nemotron_h", "nemotron_h", NEMOTRON_H),
    "nemotron_h with experts": ("nemotron_h", "nemotron_h_moe", NEMOTRON_H_MOE),
    "granite_swa": (
        "granite_swa",
        "granite_swa",
        GRANITE_SWA | {"num_hidden_layers": 4, "layer_rope_theta": [1e4, 1e4, 1e4, 0]},
    ),
    "granitemoe_swa": (
        "granitemoe_swa",
        "granite_swa",
        GRANITE_SWA | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 64},
    ),
    "apertus": (
        "apertus",
        "apertus",
        {
            "tie_word_embeddings": False, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "arcee": ("arcee", "arcee", {"tie_word_embeddings": False}),
    "ernie4_5": ("ernie4_5", "ernie4_5", {"head_dim": 16}),
    "ernie4_5_moe": ("ernie4_5_moe", "ernie4_5-moe", ERNIE4_5_MOE),
    "glm4_moe": ("glm4_moe", "glm4moe", GLM4_MOE),
    "laguna": ("laguna", "laguna", LAGUNA),
    "laguna, a gate for each number": ("laguna", "laguna", LAGUNA | {"gating": "per-element"}),
    "dots1": ("dots1", "dots1", DOTS1),
    "afmoe": ("afmoe", "afmoe", AFMOE),
    "exaone_moe": ("exaone_moe", "exaone-moe", EXAONE_MOE),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", "hunyuan-moe", HUNYUAN_MOE),
    "hy_v3": ("hy_v3", "hy_v3", HY_V3 | {"num_hidden_layers": 3, "router_scaling_factor": 1.5}),
    "mellum": ("mellum", "mellum", MELLUM | {"rope_parameters": mellum_rope(1e5)}),
    "minimax_m2": ("minimax_m2", "minimax-m2", MINIMAX_M2),
    "jais2": ("jais2", "jais2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "seed_oss": ("seed_oss", "seed_oss", {"head_dim": 32}),
    "gemma": ("gemma", "gemma", {"head_dim": 32}),
    "exaone": ("exaone", "exaone", {"tie_word_embeddings": False}),
    "exaone4": (
        "exaone4",
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "tie_word_embeddings": False},
    ),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", "hunyuan-dense", {"head_dim": 16, "pad_token_id": 0}),
    "lfm2": ("lfm2", "lfm2", LFM2),
    "lfm2, convolutions over four tokens": (
        "lfm2",
        "lfm2",
        LFM2 | {
            "conv_L_cache": 4, "num_key_value_heads": 4, "block_auto_adjust_ff_dim": True, "block_multiple_of": 32,
        },
    ),
    "lfm2_moe": ("lfm2_moe", "lfm2moe", LFM2_MOE),
    "ministral3": (
        "ministral3",
        "mistral3",
        {"head_dim": 16, "rope_parameters": MINISTRAL3 | {"original_max_position_embeddings": 16}},
    ),
    "cohere": ("cohere", "command-r", {"logit_scale": 0.5}),
    "cohere with norms of heads": ("cohere", "command-r", {"use_qk_norm": True, "logit_scale": 0.5}),
    "cohere2": ("cohere2", "cohere2", {"num_hidden_layers": 4, "sliding_window": 9, "logit_scale": 0.5}),
    "cohere2_moe": ("cohere2_moe", "cohere2moe", COHERE2_MOE),
    "cohere2_moe, averaged with shared experts, untied": (
        "cohere2_moe",
        "cohere2moe",
        COHERE2_MOE | {"first_k_dense_replace": 0, "num_shared_experts": 2, "tie_word_embeddings": False},
    ),
    "glm": ("glm", "chatglm", {"head_dim": 16, "pad_token_id": 0, "tie_word_embeddings": False}),
    "glm4": ("glm4", "glm4", {"head_dim": 16, "pad_token_id": 0, "tie_word_embeddings": False}),
    "the text part of GLM-4.6V": (
        "glm4",
        "glm4",
        {"head_dim": 32, "pad_token_id": 0, "tie_word_embeddings": False, "sections": [2, 3, 3, 0]},
    ),
    "the text part of GLM-4.5V": ("glm4_moe", "glm4moe", GLM4_MOE | {"sections": [2, 3, 3, 0]}),
    "qwen3_5": (
        "qwen3_5_text",
        "qwen35",
        QWEN3_5 | QWEN3_5_EPSILON | {"linear_key_head_dim": 32, "linear_value_head_dim": 32},
    ),
    "qwen3_5 with experts": (
        "qwen3_5_moe_text",
        "qwen35moe",
        QWEN3_5_MOE | QWEN3_5_EPSILON | {
            "linear_key_head_dim": 32, "linear_value_head_dim": 32, "tie_word_embeddings": False,
        },
    ),
    "qwen3_5, a key head for each value head, untied": (
        "qwen3_5_text",
        "qwen35",
        QWEN3_5 | QWEN3_5_EPSILON | {
            "linear_value_head_dim": 16, "linear_num_key_heads": 4, "tie_word_embeddings": False,
        },
    ),
    "qwen2_moe": ("qwen2_moe", "qwen2moe", QWEN2_MOE | {"tie_word_embeddings": False}),
    "qwen3_next": (
        "qwen3_next",
        "qwen3next",
        QWEN3_5_MOE | QWEN3_5_EPSILON | {
            "linear_key_head_dim": 32, "linear_value_head_dim": 32, "tie_word_embeddings": False,
        },
    ),
    "starcoder2": ("starcoder2", "starcoder2", {}),
    "stablelm": ("stablelm", "stablelm", {"tie_word_embeddings": False, "use_qkv_bias": True}),
    "stablelm in parallel": ("stablelm", "stablelm", {"use_parallel_residual": True, "tie_word_embeddings": False}),
    "stablelm in parallel, with norms of heads": ("stablelm", "stablelm", STABLELM_12B),
    "mixtral": ("mixtral", "llama", {"num_local_experts": 5, "tie_word_embeddings": False}),
    "qwen3_moe": ("qwen3_moe", "qwen3moe", QWEN3_MOE | {"norm_topk_prob": True}),
    "olmoe": ("olmoe", "olmoe", OLMOE | {"tie_word_embeddings": False}),
    "deepseek_v2": ("deepseek_v2", "deepseek2", DEEPSEEK | IN_BLOCKS),
    "deepseek_v3, yarn": (
        "deepseek_v3",
        "deepseek2",
        DEEPSEEK | IN_BLOCKS | IN_GROUPS | {"rope_parameters": DEEPSEEK_YARN, "norm_topk_prob": True},
    ),
    "youtu": ("youtu", "deepseek2", LATENT | IN_BLOCKS),
    # llama.cpp takes these numbers for granted.
    "minicpm3": (
        "minicpm3",
        "minicpm3",
        LATENT | IN_BLOCKS | {"v_head_dim": 16, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    ),
    "minicpm3, longrope": (
        "minicpm3",
        "minicpm3",
        LATENT | IN_BLOCKS | {
            "v_head_dim": 16, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256,
            "rope_parameters": LATENT_LONGROPE | {"original_max_position_embeddings": 1024},
        },
    ),
    "gpt_oss": ("gpt_oss", "gpt-oss", GPT_OSS | {"swiglu_limit": 7.0, "tie_word_embeddings": False}),
    "minicpm": ("minicpm", "minicpm", MINICPM),
    "minicpm, longrope, untied": (
        "minicpm",
        "minicpm",
        MINICPM | {
            "scale_emb": 1, "tie_word_embeddings": False,
            "rope_scaling": MINICPM_LONGROPE | {"original_max_position_embeddings": 1024},
        },
    ),
    "internlm2": ("internlm2", "internlm2", {"bias": False, "tie_word_embeddings": False}),
    "deepseek": ("deepseek", "deepseek", DEEPSEEK_MOE),
    "bailing_moe": ("bailing_moe", "bailingmoe", LING),
    "bailing_moe, the second": ("bailing_moe_v2", "bailingmoe2", LING_2 | {"head_dim": 16}),
    "falcon": ("falcon", "falcon", FALCON_7B | {"max_position_embeddings": 2048}),
    "falcon, two key heads, untied": (
        "falcon",
        "falcon",
        FALCON_11B | {"max_position_embeddings": 2048, "tie_word_embeddings": False},
    ),
    "gpt_bigcode": ("gpt_bigcode", "starcoder", GPT_BIGCODE),
    "bloom": ("bloom", "bloom", {"n_layer": 2, "n_head": 4}),
    "bloom of six heads": ("bloom", "bloom", {"hidden_size": 96, "n_layer": 2, "n_head": 6}),
    "mpt": ("mpt", "mpt", MPT | {"n_heads": 4}),
    "gpt2": ("gpt2", "gpt2", {"n_inner": 96}),
    "gpt_neox": ("gpt_neox", "gptneox", {"tie_word_embeddings": False}),
    "gpt_neox, one after the other": (
        "gpt_neox",
        "gptneox",
        {"tie_word_embeddings": False, "use_parallel_residual": False, "rotary_pct": 0.5},
    ),
}  # fmt: skip

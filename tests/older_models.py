"""Random models of families from before Llama, in configurations that have every feature of their rows."""

from __future__ import annotations

from typing import Any

FALCON_7B = {"pad_token_id": 0, "ffn_hidden_size": 96}
FALCON_11B = FALCON_7B | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
GPT_BIGCODE = {"n_inner": 96, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

STABLELM_12B = {"use_parallel_residual": True, "qk_layernorm": True, "tie_word_embeddings": False}
GPT_NEO = {"attention_types": [[["global", "local"], 1]], "window_size": 9, "intermediate_size": 96}
GPTJ = {"rotary_dim": 8, "n_inner": 96, "tie_word_embeddings": False}
CODEGEN = GPTJ | {"pad_token_id": None}
OPT = {"ffn_dim": 96, "pad_token_id": 0}

XGLM = {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "pad_token_id": 0}
MPT = {"d_model": 64, "n_layers": 2, "max_seq_len": 1024}
# A window of nine tokens.
MODERNBERT = {"num_hidden_layers": 4, "local_attention": 18, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}

OLDER_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "starcoder2": ("starcoder2", {}),
    "starcoder2 in a window, without biases, untied": (
        "starcoder2",
        {"sliding_window": 9, "use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-3},
    ),
    "stablelm": ("stablelm", {"tie_word_embeddings": False}),
    "stablelm in parallel, with norms of heads": ("stablelm", STABLELM_12B),
    "stablelm in parallel, with biases": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "gpt2": ("gpt2", {"n_inner": 96}),
    "gpt2, untied, four times as wide": ("gpt2", {"tie_word_embeddings": False}),
    "openai-gpt": ("openai-gpt", {}),
    "openai-gpt, another activation, untied": ("openai-gpt", {"afn": "relu", "tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", {"tie_word_embeddings": False}),
    "gpt_neox, one after the other, without biases": (
        "gpt_neox",
        {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
    ),
    "persimmon": ("persimmon", {}),
    "persimmon, three quarters of each head, without norms of heads, tied": (
        "persimmon",
        {
            "num_attention_heads": 2, "qk_layernorm": False, "tie_word_embeddings": True, "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "default", "rope_theta": 25e3, "partial_rotary_factor": 0.75},
        },
    ),
    "falcon": ("falcon", FALCON_7B),
    "falcon, two key heads, untied, another base": (
        "falcon",
        FALCON_11B | {
            "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "falcon, two norms in parallel, four times as wide": (
        "falcon",
        FALCON_11B | {"num_ln_in_parallel_attn": None, "ffn_hidden_size": None, "layer_norm_epsilon": 1e-3},
    ),
    "falcon, one after the other, a key head for each query head, biases": (
        "falcon",
        FALCON_7B | {"parallel_attn": False, "multi_query": False, "bias": True},
    ),
    # Of four heads transformers' rounding to bfloat16 changes nothing.
    "falcon with falling scores": (
        "falcon",
        FALCON_7B | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    ),
    "modernbert-decoder": ("modernbert-decoder", MODERNBERT),
    "modernbert-decoder with biases, untied, windows everywhere but once": (
        "modernbert-decoder",
        MODERNBERT | {
            "norm_bias": True, "attention_bias": True, "mlp_bias": True, "decoder_bias": False, "norm_eps": 1e-3,
            "tie_word_embeddings": False, "global_attn_every_n_layers": 4, "sliding_window": 12,
        },
    ),
    "gpt_bigcode": ("gpt_bigcode", GPT_BIGCODE),
    "gpt_bigcode, a key head for each query head, untied": (
        "gpt_bigcode",
        GPT_BIGCODE | {"multi_query": False, "n_inner": None, "tie_word_embeddings": False},
    ),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "bloom of six heads, untied": (
        "bloom",
        {"hidden_size": 96, "n_layer": 2, "n_head": 6, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
    ),
    "mpt": ("mpt", MPT | {"n_heads": 4}),
    "mpt of six heads, untied, another scale": (
        "mpt",
        MPT | {"d_model": 96, "n_heads": 6, "tie_word_embeddings": False, "attn_config": {"softmax_scale": 0.4}},
    ),
    "gpt_neo": ("gpt_neo", GPT_NEO),
    "gpt_neo, other kinds of layers, untied, four times as wide": (
        "gpt_neo",
        {
            "attention_types": [[["local"], 2], [["global"], 1]], "window_size": 9, "num_hidden_layers": 3,
            "tie_word_embeddings": False,
        },
    ),
    "gptj": ("gptj", GPTJ),
    "gptj, whole heads, tied": ("gptj", GPTJ | {"rotary_dim": 16, "n_inner": None, "tie_word_embeddings": True}),
    "codegen": ("codegen", CODEGEN),
    "codegen of eight heads, which turn as a whole, tied": (
        "codegen",
        CODEGEN | {
            "hidden_size": 128, "num_attention_heads": 8, "rotary_dim": 16, "n_inner": None,
            "tie_word_embeddings": True,
        },
    ),
    "xglm": ("xglm", XGLM),
    "xglm untied, without a scale": (
        "xglm",
        XGLM | {"scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    "opt": ("opt", OPT),
    "opt, norms behind each part, untied": ("opt", OPT | {"do_layer_norm_before": False, "tie_word_embeddings": False}),
    "opt without biases and weights of norms (Galactica)": (
        "opt",
        OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    ),
}  # fmt: skip

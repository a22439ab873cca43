"""What edgelm lacks of families that it does not read: the feature that a row would need, by their model_type."""

from __future__ import annotations

from collections.abc import Mapping

_NO_ATTENTION = "it has no layer of attention, and so no keys and values to keep"
_PARTS_OF_A_SOURCE = "its encoder looks at parts of a long source, and at some tokens from everywhere"
_EXPERTS = "its encoder and decoder have experts"
_CHOICE = "its attention chooses the tokens that a query sees"
_STREAMS = f"{_CHOICE}, and each layer mixes several residual streams anew (hyper-connections)"
_DELTA = "its linear attention forgets each channel at a rate of its own (Kimi Delta Attention)"
_INKLING = "its attention scores distances by what a query says of them, and each of its parts has a short convolution"
_LOOPS = "its layers run over a text several times"
_GUESSES = "it guesses tokens ahead for another model, and is none by itself"
_TOKENIZER = "its tokenizer, which no tokenizer.json holds, is in code of transformers alone"

LACKING: Mapping[str, str] = {
    # with an encoder
    "bigbird_pegasus": _PARTS_OF_A_SOURCE,
    "led": _PARTS_OF_A_SOURCE,
    "longt5": _PARTS_OF_A_SOURCE,
    "pegasus_x": _PARTS_OF_A_SOURCE,
    "nllb-moe": _EXPERTS,
    "switch_transformers": _EXPERTS,
    "t5gemma2": "its decoder looks at the source and at earlier tokens by one attention",
    "encoder-decoder": "its stacks are models of two families",
    "fsmt": "its stacks have two vocabularies",
    "prophetnet": "its decoder predicts several tokens from one place",
    # without one
    "falcon_mamba": _NO_ATTENTION,
    "mamba": _NO_ATTENTION,
    "mamba2": _NO_ATTENTION,
    "rwkv": _NO_ATTENTION,
    "xlstm": _NO_ATTENTION,
    # of attention, in layers or between them
    "axk2": _CHOICE,
    "bailing_hybrid": _DELTA,
    "beam": "it weights the residual stream by its depth, and queries grow with each position",
    "dbrx": "its queries, keys and values are clipped (clip_qkv)",
    "deepseek_v32": _CHOICE,
    "deepseek_v4": _STREAMS,
    "diffllama": "its attention is the difference of two",
    "doge": _CHOICE,
    "dots3_note": _CHOICE,
    "dots3_note_text": _CHOICE,
    "glm_moe_dsa": _CHOICE,
    "hy_v4": _STREAMS,
    "inkling_mm_model": _INKLING,
    "inkling_text": _INKLING,
    "inkling2": _INKLING,
    "inkling2_loop": _INKLING,
    "inkling2_loop_text": _INKLING,
    "inkling2_text": _INKLING,
    "kimi_linear": _DELTA,
    "mimo_v2_flash": "its values are smaller than its keys, and layers with a window alone have attention sinks",
    "minimax": "its linear attention forgets at a fixed rate (Lightning Attention)",
    "minimax_m3_vl": _CHOICE,
    "minimax_m3_vl_text": _CHOICE,
    "qwen4_exp": _STREAMS,
    "qwen4_exp_text": _STREAMS,
    "zaya": "its queries and keys go through convolutions, and half of each value is the token's before",
    # of experts, of how often layers run, of tokenizers
    "axk1": "its experts have a norm behind them, which its attention has not",
    "biogpt": _TOKENIZER,
    "ctrl": _TOKENIZER,
    "dory": f"{_LOOPS}, and its states keep one length (nGPT)",
    "gemma4_assistant": _GUESSES,
    "gemma4_unified_assistant": _GUESSES,
    "gpt_neox_japanese": _TOKENIZER,
    "hrm_text": f"{_LOOPS}, two stacks in turn",
    "jetmoe": "it has experts of attention",
    "kolibri1": "it chooses experts by scores with a bias, not by the weights that are made of them",
    "longcat_flash": "some of its experts compute nothing, and each layer has two attentions",
    "recurrent_gemma": "it has gated linear recurrences (RG-LRU)",
    "zamba": "several of its layers share one attention",
    "zamba2": "several of its layers share one attention",
}

"""What edgelm lacks of families that it does not read: the feature that a row would need, by their model_type."""

from __future__ import annotations

from collections.abc import Mapping

_NO_ATTENTION = "it has no layer of attention, and so no keys and values to keep"
_PARTS_OF_A_SOURCE = "its encoder looks at parts of a long source, and at some tokens from everywhere"
_EXPERTS = "its encoder and decoder have experts"

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
    "deepseek_v32": "its attention chooses the tokens that a query sees",
    "diffllama": "its attention is the difference of two",
    "doge": "its attention chooses the tokens that a query sees",
    "glm_moe_dsa": "its attention chooses the tokens that a query sees",
    "jetmoe": "it has experts of attention",
    "kimi_linear": "its linear attention forgets each channel at a rate of its own (Kimi Delta Attention)",
    "recurrent_gemma": "it has gated linear recurrences (RG-LRU)",
    "zamba": "several of its layers share one attention",
    "zamba2": "several of its layers share one attention",
}

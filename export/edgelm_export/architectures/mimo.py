"""MiMo-7B: a Qwen2 beside which layers guess one more token ahead."""

from __future__ import annotations

import dataclasses

from edgelm_export.architectures.qwen2 import QWEN2
from edgelm_export.tensor_map import TensorLayout

_BLOCK = "model.mtp_layers.{i}"
_NORMS = ("input_layernorm", "post_attention_layernorm", "token_layernorm", "hidden_layernorm", "final_layernorm")
_MATRICES = ("input_proj", "self_attn.o_proj", *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))
_GUESSING = frozenset(
    {
        *(f"{_BLOCK}.{name}.weight" for name in (*_NORMS, *_MATRICES)),
        *(f"{_BLOCK}.self_attn.{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")),
    }
)

MIMO = dataclasses.replace(
    QWEN2,
    model_type="mimo",
    layout=TensorLayout(ignored=_GUESSING),
    is_in_transformers=False,
    gguf=None,  # llama.cpp does not know it
)

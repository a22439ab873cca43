"""Qwen 1 (1.8B to 72B): a Qwen2 with as many key heads as query heads, all of a layer's in one tensor.

Its code changes rope and queries in texts longer than `seq_length`, so that this is the context.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.architectures.phi3 import GGUF_FUSED
from edgelm_export.checkpoints.tensor_map import TensorLayout

_LAYER, _BLOCK = "model.layers.{i}", "transformer.h.{i}"
_NAMES = {
    "model.embed_tokens": "transformer.wte",
    f"{_LAYER}.input_layernorm": f"{_BLOCK}.ln_1",
    **{f"{_LAYER}.self_attn.{part}_proj": f"{_BLOCK}.attn.c_attn" for part in "qkv"},
    f"{_LAYER}.self_attn.o_proj": f"{_BLOCK}.attn.c_proj",
    f"{_LAYER}.post_attention_layernorm": f"{_BLOCK}.ln_2",
    f"{_LAYER}.mlp.gate_proj": f"{_BLOCK}.mlp.w2",
    f"{_LAYER}.mlp.up_proj": f"{_BLOCK}.mlp.w1",
    f"{_LAYER}.mlp.down_proj": f"{_BLOCK}.mlp.c_proj",
    "model.norm": "transformer.ln_f",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config({**values, "num_key_value_heads": None})
    return dataclasses.replace(config, intermediate_size=config.intermediate_size // 2)  # of both its halves


QWEN = Architecture(
    model_type="qwen",
    defaults={"eos_token_id": [151643, 151645]},  # the second ends a turn
    fixed={"no_bias": True, "scale_attn_weights": True, "rotary_pct": 1.0},
    renamed={
        "head_dim": "kv_channels",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layer_norm_epsilon",
        "rope_theta": "rotary_emb_base",
    },
    read_config=_to_model_config,
    features={"attention_bias": True, "attention_output_bias": False, "mlp_bias": False},
    layout=TensorLayout(names=_NAMES),
    is_in_transformers=False,
    gguf=GGUFFamily(architecture="qwen", layout=TensorLayout(names=llama.GGUF_NAMES | GGUF_FUSED)),
)

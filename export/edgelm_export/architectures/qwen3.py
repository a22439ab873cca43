"""Qwen3, the dense models: a Llama that norms each query and key head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFHeader

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768}

_GGUF_NAMES = {
    **llama.GGUF_NAMES,
    "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
    "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    hf_values.refuse_windows(values)
    config = llama.to_model_config({**_DEFAULTS, **values})
    return dataclasses.replace(config, model_type="qwen3", mlp_bias=False, qk_norm=True)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = llama.gguf_to_hf_config(header, "qwen3")
    attention_bias = "blk.0.attn_q.bias" in header.shapes
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **values,
        "attention_bias": attention_bias,
    }


QWEN3 = Architecture(
    model_type="qwen3",
    to_model_config=_to_model_config,
    tensor_names={name: name for name in _GGUF_NAMES},
    gguf_architecture="qwen3",
    gguf_to_hf_config=_gguf_to_hf_config,
    gguf_tensor_names=_GGUF_NAMES,
)

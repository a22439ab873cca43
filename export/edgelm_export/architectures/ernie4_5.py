"""ERNIE 4.5, the dense model of 0.3B: a Llama that turns neighbouring dimensions, in safetensors too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **values}
    has_biases = hf_values.flag(values, "use_bias")
    return dataclasses.replace(
        llama.to_model_config(values),
        model_type="ernie4_5",
        mlp_bias=has_biases,
        attention_bias=has_biases,
        attention_output_bias=has_biases,
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, "ernie4_5")
    return values | {"model_type": "ernie4_5", "use_bias": "blk.0.attn_q.bias" in header.shapes}


ERNIE4_5 = Architecture(
    model_type="ernie4_5",
    to_model_config=_to_model_config,
    layout=TensorLayout(names={name: name for name in llama.GGUF_NAMES}, row_orders=llama.GGUF_ROW_ORDERS),
    gguf=GGUFFamily(
        architecture="ernie4_5",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=llama.GGUF_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
    ),
)

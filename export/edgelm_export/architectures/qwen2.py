"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFHeader

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {"num_key_value_heads": 32, "max_position_embeddings": 32768}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    hf_values.refuse_windows(values)
    config = llama.to_model_config({**_DEFAULTS, **values})
    return dataclasses.replace(
        config, model_type="qwen2", attention_bias=True, attention_output_bias=False, mlp_bias=False
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = llama.gguf_to_hf_config(header, "qwen2")
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **values}


QWEN2 = Architecture(
    model_type="qwen2",
    to_model_config=_to_model_config,
    tensor_names={name: name for name in llama.GGUF_NAMES},
    gguf_architecture="qwen2",
    gguf_to_hf_config=_gguf_to_hf_config,
    gguf_tensor_names=llama.GGUF_NAMES,
)

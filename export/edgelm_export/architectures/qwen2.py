"""Qwen2 and Qwen2.5: a Llama with biases on queries, keys and values alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout


def to_model_config(values: dict[str, Any]) -> ModelConfig:
    """Read config.json's values as those of a Llama with Qwen's switch of windows."""
    config = llama.to_model_config(values)
    return dataclasses.replace(config, **hf_values.switched_windows(values, layers=config.num_hidden_layers))


QWEN2 = Architecture(
    model_type="qwen2",
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    read_config=to_model_config,
    features={"attention_bias": True, "attention_output_bias": False, "mlp_bias": False},
    gguf=GGUFFamily(
        architecture="qwen2",
        layout=TensorLayout(names=llama.GGUF_NAMES),
        also_called=("qwen2vl",),  # and Qwen2.5-VL
    ),
)

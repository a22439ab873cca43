"""Mistral: a Llama without biases, whose first versions attend in a window; Ministral does in some of its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **values}
    config = llama.to_model_config(values)
    window = hf_values.optional_whole_number(values, "sliding_window")
    return dataclasses.replace(
        config,
        model_type="mistral",
        **hf_values.windows(values, window, ["sliding_attention"]),
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
    )


def _to_ministral(values: Mapping[str, Any]) -> ModelConfig:
    return dataclasses.replace(_to_model_config(values), model_type="ministral")


# llama.cpp's converter calls both "llama", so their GGUF files are read by Llama's row, the first of that name.
MISTRAL = dataclasses.replace(llama.LLAMA, model_type="mistral", to_model_config=_to_model_config)
MINISTRAL = dataclasses.replace(MISTRAL, model_type="ministral", to_model_config=_to_ministral)

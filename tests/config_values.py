"""The values of a config.json that most families have."""

from __future__ import annotations

from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.llama import LLAMA

SIZES = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def model_config(**changes: Any) -> ModelConfig:
    return LLAMA.to_model_config(SIZES | changes)

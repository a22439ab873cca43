"""Granite 3, the dense models: a Llama with a multiplier at each place where signals meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import float32_number
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}

# llama.cpp's names for them.
_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Read config.json's values as those of a Granite 3."""
    config = llama.to_model_config({**_DEFAULTS, **values})
    multipliers: dict[str, Any] = {key: hf_values.number(values, key, 1.0) for key in _MULTIPLIERS}
    return dataclasses.replace(config, model_type="granite", **multipliers)


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, "granite", keys=frozenset(_MULTIPLIERS.values()))
    for key, name in _MULTIPLIERS.items():
        default = values["head_dim"] ** -0.5 if key == "attention_multiplier" else 1.0
        values[key] = float32_number(header.metadata, f"granite.{name}", default)
    return {"architectures": ["GraniteForCausalLM"], "model_type": "granite", **values}


GRANITE = Architecture(
    model_type="granite",
    to_model_config=to_model_config,
    gguf=GGUFFamily(
        architecture="granite",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=llama.GGUF_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
    ),
)

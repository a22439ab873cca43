"""Meta's CWM: a Llama of which three in four layers attend in a window."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import hf_values, llama

_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 1e6,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_PATTERN = 4  # of these, the first layer sees all


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if "rope_scaling" not in values and "rope_parameters" not in values:
        values["rope_parameters"] = _ROPE
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    window = hf_values.optional_whole_number(values, "sliding_window") or None
    windows = hf_values.windows(values, window, hf_values.first_sees_all(layers, _PATTERN))
    return dataclasses.replace(llama.to_model_config(values), **windows)


# llama.cpp's converter does not know it.
CWM = dataclasses.replace(
    llama.LLAMA,
    model_type="cwm",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 8192,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "rope_theta": 1e6,
    },
    null_keys=frozenset({"sliding_window"}),
    read_config=_to_model_config,
    features={"attention_bias": False, "attention_output_bias": False},
    gguf=None,
)

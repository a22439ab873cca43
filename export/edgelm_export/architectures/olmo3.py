"""OLMo 3: an OLMo 2 of which three in four layers attend in a window, and turn their heads unscaled there."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gemma3, hf_values, olmo2

_PATTERN = 4  # of these, the last layer sees all


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    values |= gemma3.rotations(values, values["rope_theta"], values["rope_theta"])
    config = olmo2.OLMO2.to_model_config(values)
    window = hf_values.optional_whole_number(values, "sliding_window")
    windows = hf_values.windows(values, window, hf_values.last_sees_all(config.num_hidden_layers, _PATTERN))
    local = hf_values.number(values, "rope_local_base_freq", config.rope_theta) if windows else None
    return dataclasses.replace(config, rope_local_theta=local, **windows)


# llama.cpp's converter calls it "olmo2", so its GGUF files are read by that row, the first of that name.
OLMO3 = dataclasses.replace(
    olmo2.OLMO2, model_type="olmo3", defaults={"rope_theta": 5e5, "sliding_window": 4096}, read_config=_to_model_config
)

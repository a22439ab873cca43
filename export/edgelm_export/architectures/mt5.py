"""mT5: a T5 v1.1 whose head never is scaled, whatever config.json says of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.t5 import T5


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return T5.read_config({**values, "scale_decoder_outputs": False})


MT5 = dataclasses.replace(
    T5,
    model_type="mt5",
    defaults={
        **T5.defaults,
        "vocab_size": 250112,
        "d_ff": 1024,
        "num_layers": 8,
        "num_heads": 6,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    },
    read_config=_to_model_config,
    gguf=None,
)

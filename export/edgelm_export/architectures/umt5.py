"""umT5: an mT5 each of whose layers has scores of distances of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.mt5 import MT5
from edgelm_export.architectures.t5 import T5


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = T5.read_config(values)
    assert config.encoder is not None  # T5 has one
    encoder = dataclasses.replace(config.encoder, relative_attention_per_layer=True)
    return dataclasses.replace(config, relative_attention_per_layer=True, encoder=encoder)


UMT5 = dataclasses.replace(MT5, model_type="umt5", null_keys=frozenset(), read_config=_to_model_config)

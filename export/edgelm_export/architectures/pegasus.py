"""Pegasus, which summarizes: a Marian with norms before each part and behind the last block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import COPIES, LOGITS_BIAS, names, to_model_config
from edgelm_export.architectures.marian import SINUSOIDS
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key, and BART has another value.
_DEFAULTS: Mapping[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0, "bos_token_id": [], "eos_token_id": 1}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    return to_model_config(
        values, norm_placement="pre", final_norm=True, embedding_norm=False, position="sinusoidal_halves"
    )


PEGASUS = Architecture(
    model_type="pegasus",
    read_config=_to_model_config,
    layout=TensorLayout(names=names("pre"), copies=COPIES, ignored=SINUSOIDS, stacks_of_one=LOGITS_BIAS),
    gguf=None,
)

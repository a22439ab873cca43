"""Marian, the translators of OPUS-MT: a BART with fixed sinusoids and without a norm of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import COPIES, LOGITS_BIAS, names, to_model_config
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key, and BART has another value.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 58101,
    "decoder_start_token_id": 58100,
    "pad_token_id": 58100,
    "eos_token_id": 0,
}
# Computed, not learned, but older versions of transformers stored them.
SINUSOIDS = frozenset({"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"})


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    # It begins with its padding, and BART's <s> is nothing to it.
    values = {"bos_token_id": [], **values}
    return to_model_config(values, position="sinusoidal_halves", embedding_norm=False)


MARIAN = Architecture(
    model_type="marian",
    read_config=_to_model_config,
    layout=TensorLayout(names=names("residual"), copies=COPIES, ignored=SINUSOIDS, stacks_of_one=LOGITS_BIAS),
    gguf=None,
)

"""M2M100 and NLLB-200, translators of many languages: a BART with norms before each part, and fairseq's sinusoids."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures.bart import BART, names, to_model_config
from edgelm_export.tensor_map import TensorLayout

_PADDING = 1  # fairseq counts its positions from behind it
_SINUSOIDS = frozenset({"model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights"})


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    if values.get("pad_token_id", _PADDING) != _PADDING:
        raise CheckpointError(
            f"config.json: pad_token_id is {values['pad_token_id']!r}, and positions are counted from behind it; "
            f"supported is {_PADDING}."
        )
    return to_model_config(
        values,
        lm_head_bias=False,
        norm_placement="pre",
        final_norm=True,
        embedding_norm=False,
        position="sinusoidal_fairseq",
    )


M2M_100 = dataclasses.replace(
    BART,
    model_type="m2m_100",
    defaults={**BART.defaults, "vocab_size": 128112, "activation_function": "relu", "scale_embedding": True},
    read_config=_to_model_config,
    layout=TensorLayout(names=names("pre"), copies=BART.layout.copies, ignored=_SINUSOIDS),
)

"""M2M100 and NLLB-200, translators of many languages: a BART with norms before each part, and fairseq's sinusoids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import COPIES, names, to_model_config
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key, and BART has another value.
_DEFAULTS: Mapping[str, Any] = {"vocab_size": 128112, "activation_function": "relu", "scale_embedding": True}
_PADDING = 1  # fairseq counts its positions from behind it
_SINUSOIDS = frozenset({"model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights"})


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
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


M2M_100 = Architecture(
    model_type="m2m_100",
    read_config=_to_model_config,
    layout=TensorLayout(names=names("pre"), copies=COPIES, ignored=_SINUSOIDS),
    gguf=None,
)

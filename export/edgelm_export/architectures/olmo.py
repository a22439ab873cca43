"""OLMo 1: a Llama whose layer norms have no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily

_EPSILON = 1e-5  # in no config


def refuse_clipping(values: Mapping[str, Any]) -> None:
    """Refuse a config that clips queries, keys and values, as a few of OLMo's do.

    Raises:
        CheckpointError: it does.
    """
    if values.get("clip_qkv") is not None:
        raise CheckpointError(
            f"config.json: clip_qkv is {values['clip_qkv']!r}; clipped queries, keys and values are not supported."
        )


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    refuse_clipping(values)
    values = {"eos_token_id": 50279, **values, "rms_norm_eps": _EPSILON}
    return dataclasses.replace(llama.to_model_config(values), norm="layer_plain", mlp_bias=False)


OLMO = Architecture(
    model_type="olmo",
    read_config=_to_model_config,
    gguf=GGUFFamily(
        architecture="olmo",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer"),
        layout=llama.GGUF_LAYOUT,
    ),
)

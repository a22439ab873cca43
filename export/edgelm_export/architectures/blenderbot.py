"""Blenderbot, which talks: a BART with norms before each part and behind the last block, and positions from row 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import COPIES, LOGITS_BIAS, names, to_model_config
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key, and BART has another value.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 8008,
    "d_model": 2560,
    "max_position_embeddings": 128,
    "encoder_layers": 2,
    "decoder_layers": 24,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    **{f"{stack}_attention_heads": 32 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 10240 for stack in ("encoder", "decoder")},
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}}
    return to_model_config(values, norm_placement="pre", final_norm=True, embedding_norm=False)


BLENDERBOT = Architecture(
    model_type="blenderbot",
    read_config=_to_model_config,
    layout=TensorLayout(names=names("pre"), copies=COPIES, stacks_of_one=LOGITS_BIAS),
    gguf=None,
)

"""BlenderbotSmall, which talks: a BART with positions from row 0, whose decoder norms embeddings before they come.

transformers 5 scales the embeddings of the encoder alone; its Flax model, like the models' own code, those of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.bart import COPIES, LOGITS_BIAS, names, to_model_config
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key, and BART has another value.
_DEFAULTS: Mapping[str, Any] = {
    "d_model": 512,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    **{f"{stack}_layers": 8 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 2048 for stack in ("encoder", "decoder")},
}


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    config = to_model_config({**_DEFAULTS, **{key: value for key, value in values.items() if value is not None}})
    return dataclasses.replace(config, embedding_norm_first=True)


BLENDERBOT_SMALL = Architecture(
    model_type="blenderbot-small",
    read_config=_to_model_config,
    layout=TensorLayout(names=names("residual"), copies=COPIES, stacks_of_one=LOGITS_BIAS),
    gguf=None,
)

"""CodeGen: a GPT-J whose queries, values and keys are one tensor, a quarter of the heads at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gptj
from edgelm_export.tensor_map import TensorLayout

_FUSED = "transformer.h.{i}.attn.qkv_proj"
_NAMES = gptj.NAMES | dict.fromkeys((f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"), _FUSED)
_QUARTERS = 4  # which CodeGen was trained on


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = gptj.GPTJ.read_config(values)
    if config.num_attention_heads % _QUARTERS:
        raise CheckpointError(
            f"config.json: n_head is {config.num_attention_heads}; of CodeGen it must be a multiple of {_QUARTERS}."
        )
    return config


CODEGEN = dataclasses.replace(
    gptj.GPTJ,
    model_type="codegen",
    read_config=_to_model_config,
    layout=TensorLayout(
        names=_NAMES,
        row_orders=gptj.GPTJ.layout.row_orders,
        by_quarter=frozenset({_FUSED}),
        ignored=frozenset({"transformer.h.{i}.attn.causal_mask"}),  # which older versions of transformers stored
    ),
)

"""StarCoder 1 and SantaCoder: a GPT-2 whose query heads share one key head."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, gpt2, hf_values
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout

_FUSED = "transformer.h.{i}.attn.c_attn"


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = gpt2.GPT2.to_model_config(values)
    is_shared = hf_values.flag(values, "multi_query")
    return dataclasses.replace(config, num_key_value_heads=1 if is_shared else config.num_attention_heads)


GPT_BIGCODE = Architecture(
    model_type="gpt_bigcode",
    defaults={"hidden_act": "gelu_pytorch_tanh", "multi_query": True},
    read_config=_to_model_config,
    layout=TensorLayout(names=gpt2.NAMES, by_group=frozenset({_FUSED}), ignored=gpt2.MASKS),
    gguf=GGUFFamily(
        architecture="starcoder",  # whose converter writes models with one key head alone
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer"),
        layout=TensorLayout(names=gpt2.GGUF_NAMES),
    ),
)

"""ByteDance's Seed-OSS: a Llama with a switch of its own for the bias of o_proj."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout

_GGUF_NAMES = llama.GGUF_NAMES | {"model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm"}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(
        llama.to_model_config(values),
        attention_output_bias=hf_values.flag(values, "attention_out_bias"),
    )


SEED_OSS = Architecture(
    model_type="seed_oss",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524288,
        "attention_bias": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    read_config=_to_model_config,
    gguf=GGUFFamily(architecture="seed_oss", layout=TensorLayout(names=_GGUF_NAMES)),
)

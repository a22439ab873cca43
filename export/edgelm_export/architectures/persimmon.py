"""Persimmon (8B): a GPT-NeoX one after the other, with norms of queries and keys, gated by nothing (squared relu)."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout

_ATTENTION, _MLP = "model.layers.{i}.self_attn", "model.layers.{i}.mlp"
_NAMES = {
    **{f"{_ATTENTION}.{part}_proj": f"{_ATTENTION}.query_key_value" for part in "qkv"},
    **{f"{_ATTENTION}.{part}_norm": f"{_ATTENTION}.{part}_layernorm" for part in "qk"},
    f"{_ATTENTION}.o_proj": f"{_ATTENTION}.dense",
    f"{_MLP}.up_proj": f"{_MLP}.dense_h_to_4h",
    f"{_MLP}.down_proj": f"{_MLP}.dense_4h_to_h",
    "model.norm": "model.final_layernorm",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values | {"num_key_value_heads": None, "head_dim": None}, partial=0.5)
    return dataclasses.replace(config, qk_norm=hf_values.flag(values, "qk_layernorm"))


PERSIMMON = Architecture(
    model_type="persimmon",
    defaults={
        "max_position_embeddings": 16384,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
        "qk_layernorm": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    renamed={"rms_norm_eps": "layer_norm_eps"},
    read_config=_to_model_config,
    features={"norm": "layer", "mlp_gated": False, **hf_values.biases(True)},
    layout=TensorLayout(names=_NAMES, by_head=frozenset({f"{_ATTENTION}.query_key_value"})),
    gguf=None,
)

"""Mixtral: a Mistral whose feed-forwards are experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout

NAMES = {
    "model.layers.{i}.mlp.gate": "model.layers.{i}.block_sparse_moe.gate",
    "model.layers.{i}.mlp.experts.{e}.gate_proj": "model.layers.{i}.block_sparse_moe.experts.{e}.w1",
    "model.layers.{i}.mlp.experts.{e}.up_proj": "model.layers.{i}.block_sparse_moe.experts.{e}.w3",
    "model.layers.{i}.mlp.experts.{e}.down_proj": "model.layers.{i}.block_sparse_moe.experts.{e}.w2",
}
MLX_NAMES = NAMES | experts.mlx_names("model.layers.{i}.block_sparse_moe.switch_mlp")
_GGUF_KEYS = experts.gguf_keys("num_local_experts", size=None)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values | {"attention_bias": False, "mlp_bias": False})
    return dataclasses.replace(
        config,
        sliding_window=hf_values.optional_whole_number(values, "sliding_window"),
        **experts.expert_fields(values, "num_local_experts"),
    )


MIXTRAL = Architecture(
    model_type="mixtral",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read_config=_to_model_config,
    layout=TensorLayout(names=NAMES),
    mlx=TensorLayout(names=MLX_NAMES),
    gguf=GGUFFamily(
        architecture="llama",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, _GGUF_KEYS),
        layout=experts.GGUF_LAYOUT,
        has_experts=True,
    ),
)

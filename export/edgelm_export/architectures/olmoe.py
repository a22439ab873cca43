"""OLMoE: a Llama with experts, and norms of all query and of all key heads together."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, olmo
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.tensor_map import TensorLayout


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    olmo.refuse_clipping(values)
    return dataclasses.replace(
        llama.to_model_config(values | {"mlp_bias": False}),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.expert_fields(values, "num_experts"),
    )


OLMOE = Architecture(
    model_type="olmoe",
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "eos_token_id": 50279,
    },
    renamed={"num_experts": "num_local_experts"},
    read_config=_to_model_config,
    features={"qk_norm": True, "qk_norm_scope": "projection"},
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="olmoe",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, experts.gguf_keys("num_experts", size=None)),
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)

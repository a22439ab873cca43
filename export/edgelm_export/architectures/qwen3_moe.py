"""Qwen3 with experts: in every layer, or in every n-th."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.tensor_map import TensorLayout

_EXPERTS = "model.layers.{i}.mlp.experts"
# Those of Qwen3-VL are stacks of [in, out], with gates and ups in one.
_STACKS = (f"{_EXPERTS}.gate_up_proj", f"{_EXPERTS}.down_proj")
_STACKED_NAMES = {
    f"{_EXPERTS}.{{e}}.gate_proj.weight": _STACKS[0],
    f"{_EXPERTS}.{{e}}.up_proj.weight": _STACKS[0],
    f"{_EXPERTS}.{{e}}.down_proj.weight": _STACKS[1],
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values | {"mlp_bias": False})
    window = hf_values.whole_number(values, "sliding_window", 4096) if values.get("use_sliding_window") else None
    return dataclasses.replace(
        config,
        sliding_window=window,
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.sparse_layers(values, config.num_hidden_layers),
        **experts.expert_fields(values, "num_experts"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, experts.gguf_keys("num_experts"))
    return values | {"norm_topk_prob": True}  # llama.cpp leaves it to its reader


QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    renamed={"num_experts": "num_local_experts"},  # as newer versions of transformers write it
    read_config=_to_model_config,
    features={"qk_norm": True},
    mlx=TensorLayout(names=experts.MLX_NAMES),
    stacked=TensorLayout(names=_STACKED_NAMES, transposed=frozenset(_STACKS)),
    gguf=GGUFFamily(
        architecture="qwen3moe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
        also_called=("qwen3vlmoe",),
    ),
)

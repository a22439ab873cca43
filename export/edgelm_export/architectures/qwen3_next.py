"""Qwen3-Next: a Qwen3.5 with experts whose linear attention has what it projects of each key head side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, hf_values, qwen3_5
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.architectures.qwen3_5 import ATTENTION, GGUF_LAYOUT, LINEAR_ATTENTION
from edgelm_export.checkpoints.tensor_map import TensorLayout

_FUSED = {
    f"{LINEAR_ATTENTION}.{part}": f"{LINEAR_ATTENTION}.{fused}"
    for fused, parts in {"in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")}.items()
    for part in parts
}
_NAMES = qwen3_5.MOE_NAMES | _FUSED
_LAYOUT = TensorLayout(
    names=_NAMES,
    by_head=frozenset({f"{ATTENTION}.q_proj"}),
    by_key_head=frozenset(_FUSED.values()),
)
_BA = "blk.{i}.ssm_ba"


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = qwen3_5.QWEN3_5_MOE.to_model_config(values)
    return dataclasses.replace(
        config,
        intermediate_size=hf_values.whole_number(values, "intermediate_size", 5632),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.sparse_layers(values, config.num_hidden_layers),
    )


QWEN3_NEXT = Architecture(
    model_type="qwen3_next",
    defaults={
        "num_key_value_heads": 2,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    },
    read_config=_to_model_config,
    layout=_LAYOUT,
    mlx=qwen3_5.as_in_mlx(dataclasses.replace(_LAYOUT, names=_NAMES | experts.MLX_NAMES)),
    gguf=GGUFFamily(
        architecture="qwen3next",
        to_hf_config=qwen3_5.moe_gguf_to_hf_config,
        # llama.cpp's converter takes queries, keys, values and gates apart, and leaves the value heads where they are.
        layout=dataclasses.replace(
            GGUF_LAYOUT,
            names=qwen3_5.GGUF_NAMES | {f"{LINEAR_ATTENTION}.in_proj_b": _BA, f"{LINEAR_ATTENTION}.in_proj_a": _BA},
            by_key_head=frozenset({_BA}),
            row_orders={},
            column_orders={},
        ),
        has_experts=True,
    ),
)

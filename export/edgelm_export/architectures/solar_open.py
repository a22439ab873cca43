"""Solar Open (102B-A12B): a GLM-4.5 that turns whole heads, without norms of them, whose layers all have experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.checkpoints.tensor_map import TensorLayout


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    # Of the feed-forward that no layer has, config.json may say no size.
    size = hf_values.whole_number(values, "moe_intermediate_size")
    config = llama.to_model_config(values | {"intermediate_size": size})
    return dataclasses.replace(config, **sigmoid_experts.fields(values, config.num_hidden_layers))


SOLAR_OPEN = Architecture(
    model_type="solar_open",
    defaults={
        "vocab_size": 196608,
        "hidden_size": 4096,
        "num_hidden_layers": 48,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "moe_intermediate_size": 1280,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "first_k_dense_replace": 0,
        "norm_topk_prob": True,
    },
    fixed={"first_k_dense_replace": 0},
    read_config=_to_model_config,
    features={"attention_output_bias": False},
    layout=TensorLayout(has_more_layers=True),
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=None,
)

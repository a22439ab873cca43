"""Sarvam (30B-A2.4B): a Ling 2.0 that turns whole heads, under DeepSeek-V3's names or Ling's."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.architectures.deepseek_moe import AS_DEEPSEEK, LING_NAMES
from edgelm_export.tensor_map import TensorLayout


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values)
    return dataclasses.replace(
        config,
        qk_norm=hf_values.flag(values, "use_qk_norm"),
        **sigmoid_experts.fields(values, config.num_hidden_layers),
    )


SARVAM = Architecture(
    model_type="sarvam_moe",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 8e6,
        "moe_intermediate_size": 1024,
        "num_experts_per_tok": 6,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "eos_token_id": 1,
    },
    renamed={**AS_DEEPSEEK, "attention_bias": "use_qkv_bias"},
    read_config=_to_model_config,
    features={"attention_output_bias": False},
    layout=TensorLayout(names=LING_NAMES, has_more_layers=True),
    gguf=None,
)

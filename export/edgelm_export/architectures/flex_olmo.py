"""FlexOlmo: an OLMo 2 whose feed-forwards are experts."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, hf_values, olmo2
from edgelm_export.architectures.architecture import Architecture


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(
        olmo2.OLMO2.to_model_config(values),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **experts.expert_fields(values, "num_experts"),
    )


# Neither llama.cpp nor mlx-lm knows it.
FLEX_OLMO = Architecture(
    model_type="flex_olmo",
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e5,
        "num_experts": 7,
        "num_experts_per_tok": 5,
        "eos_token_id": 100257,
    },
    read_config=_to_model_config,
    gguf=None,
)

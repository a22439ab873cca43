"""GLM-4.5 and 4.6: a Llama that turns the first half of each head, with experts behind the first layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.tensor_map import TensorLayout

_PART = 0.5  # of a head, that turns
_GGUF_NAMES = (
    experts.GGUF_NAMES
    | llama.GGUF_QK_NORMS
    | {"model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm"}
)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values, partial=_PART)
    return dataclasses.replace(
        config,
        qk_norm=hf_values.flag(values, "use_qk_norm"),
        **sigmoid_experts.fields(values, config.num_hidden_layers),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    keys = {gguf_header.SECTIONS: None}  # of GLM-4.5V, whose three are the same for a text
    values = sigmoid_experts.gguf_values(header, keys, turns_a_part=True)
    return values | {"use_qk_norm": "blk.0.attn_q_norm.weight" in header.shapes}


# Layers that guess further tokens stand behind the others, in both formats.
GLM4_MOE = Architecture(
    model_type="glm4_moe",
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    read_config=_to_model_config,
    features={"attention_output_bias": False},
    layout=TensorLayout(has_more_layers=True),
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="glm4moe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES, has_more_layers=True),
        has_experts=True,
    ),
)

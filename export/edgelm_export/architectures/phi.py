"""Phi-1 to Phi-2: attention and feed-forward in parallel behind one layer norm, and heads that turn in part."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.checkpoints.tensor_map import TensorLayout

_NAMES = {
    "model.layers.{i}.self_attn.o_proj": "model.layers.{i}.self_attn.dense",
    "model.layers.{i}.self_attn.q_norm": "model.layers.{i}.self_attn.q_layernorm",
    "model.layers.{i}.self_attn.k_norm": "model.layers.{i}.self_attn.k_layernorm",
    "model.layers.{i}.mlp.up_proj": "model.layers.{i}.mlp.fc1",
    "model.layers.{i}.mlp.down_proj": "model.layers.{i}.mlp.fc2",
    "model.norm": "model.final_layernorm",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    config = llama.to_model_config(values, partial=0.5)
    return dataclasses.replace(config, qk_norm=hf_values.flag(values, "qk_layernorm"))


PHI = Architecture(
    model_type="phi",
    defaults={
        "max_position_embeddings": 2048,
        "hidden_act": "gelu_new",
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    renamed={"rms_norm_eps": "layer_norm_eps"},
    read_config=_to_model_config,
    features={
        "norm": "layer",
        "norm_placement": "shared",
        "parallel_residual": True,
        "mlp_gated": False,
        **hf_values.biases(True),
        "lm_head_bias": True,
    },
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="phi2",
        to_hf_config=lambda header: gguf_header.to_hf_config(header, norm="layer", turns_a_part=True),
        layout=TensorLayout(names=llama.GGUF_NAMES),
    ),
)

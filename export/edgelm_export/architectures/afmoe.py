"""Arcee's Trinity (Nano, Mini): norms on both sides, gates behind attention, and experts behind the first layers.

Three in four layers attend in a window; those that see all do not turn their heads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma import GGUF_NAMES
from edgelm_export.architectures.gguf_values import WINDOW
from edgelm_export.checkpoints.tensor_map import TensorLayout

_MLP = "model.layers.{i}.mlp"
_NAMES = {
    "model.layers.{i}.pre_feedforward_layernorm": "model.layers.{i}.pre_mlp_layernorm",
    "model.layers.{i}.post_feedforward_layernorm": "model.layers.{i}.post_mlp_layernorm",
    f"{_MLP}.gate": f"{_MLP}.router.gate",
    f"{_MLP}.gate.e_score_correction_bias": f"{_MLP}.expert_bias",
}
_GGUF_NAMES = (
    experts.GGUF_NAMES
    | GGUF_NAMES
    | llama.GGUF_QK_NORMS
    | {"model.layers.{i}.self_attn.gate_proj": "blk.{i}.attn_gate"}
)


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    every = hf_values.bounded(values, "global_attn_every_n_layers")
    kinds = hf_values.layer_types(values) or hf_values.last_sees_all(layers, every)
    config = llama.to_model_config(values)
    return dataclasses.replace(
        config,
        embedding_multiplier=config.hidden_size**0.5 if hf_values.flag(values, "mup_enabled") else 1.0,
        layers_without_rope=hf_values.layers_of(kinds, "full_attention"),
        **hf_values.windows_by_kind(values, kinds),
        **sigmoid_experts.fields({**values, "norm_topk_prob": True}, layers),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = sigmoid_experts.gguf_values(header, WINDOW)
    return {**values, "route_norm": values["norm_topk_prob"], "mup_enabled": True}  # as llama.cpp computes


AFMOE = Architecture(
    model_type="afmoe",
    defaults={
        "head_dim": 128,
        "max_position_embeddings": 16384,
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "global_attn_every_n_layers": 4,
        "sliding_window": 1024,
    },
    # What the models' own code lets a config say, and transformers does not read.
    fixed={
        "attention_bias": False,
        "route_norm": True,
        "score_func": "sigmoid",
        "n_group": 1,
        "topk_group": 1,
        "num_expert_groups": 1,
        "num_limited_groups": 1,
    },
    renamed={
        "n_routed_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
        "first_k_dense_replace": "num_dense_layers",
        "routed_scaling_factor": "route_scale",
    },
    read_config=_to_model_config,
    features={"norm_placement": "both", "qk_norm": True, "attention_output_gate": True},
    layout=TensorLayout(names=_NAMES),
    mlx=TensorLayout(names=_NAMES | experts.mlx_names(f"{_MLP}.experts")),
    gguf=GGUFFamily(
        architecture="afmoe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=_GGUF_NAMES),
        has_experts=True,
    ),
)

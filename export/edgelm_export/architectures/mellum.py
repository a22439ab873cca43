"""JetBrains' Mellum 2: a Qwen3 with experts of which some layers attend in a window, and turn their heads otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm_export.architectures import experts, gemma3, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import WINDOW_PATTERN, GGUFKeys, rope_by_kind, whole_number, window_kinds
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "sliding_window": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 896,
    "first_k_dense_replace": 0,
    "norm_topk_prob": True,
    "rope_theta": 5e5,
    "rope_local_base_freq": 1e4,
}
_GGUF_KEYS: GGUFKeys = {
    **experts.gguf_keys("num_experts"),
    **dict.fromkeys(("attention.sliding_window", WINDOW_PATTERN, "rope.freq_base_swa")),
}
_PATTERN = 4  # of these, the last layer sees all, where a file does not list them


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    values |= gemma3.rotations(values, _DEFAULTS["rope_theta"], _DEFAULTS["rope_local_base_freq"])
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or ["full_attention"] * layers
    windows = hf_values.windows_by_kind(values, kinds)
    return dataclasses.replace(
        llama.to_model_config(values | {"mlp_bias": False}),
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4) if windows else None,
        layers_without_experts=experts.dense_layers(values, layers),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        norm_topk_prob=hf_values.flag(values, "norm_topk_prob"),
        **windows,
        **experts.expert_fields(values, "num_experts"),
    )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    metadata = header.metadata
    values = gguf_header.to_hf_config(header, _GGUF_KEYS)
    window = whole_number(metadata, "mellum.attention.sliding_window", 0)
    layers = max(min(values["num_hidden_layers"], MAX_LAYERS), 0)
    kinds = hf_values.last_sees_all(layers, _PATTERN)
    if isinstance(metadata.get(f"mellum.{WINDOW_PATTERN}"), list):
        kinds = window_kinds(header)
    values |= {"sliding_window": window or None, "layer_types": kinds if window else None}
    return rope_by_kind(values, header)


MELLUM = Architecture(
    model_type="mellum",
    defaults=_DEFAULTS,
    renamed={"num_experts": "num_local_experts"},
    read_config=_to_model_config,
    features={"qk_norm": True},
    mlx=TensorLayout(names=experts.MLX_NAMES),
    gguf=GGUFFamily(
        architecture="mellum",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES | llama.GGUF_QK_NORMS),
        has_experts=True,
    ),
)

"""Cohere 2 with experts (North Mini Code, 30B-A3B): behind the first layers, each feed-forward is a choice of them.

The first layers turn their heads where they see all tokens too, unless they have a pattern of windows of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.architecture.multipliers import Multipliers
from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import cohere, experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import (
    WINDOW,
    WINDOW_PATTERN,
    GGUFKeys,
    float32_number,
    window_kinds,
)
from edgelm_export.checkpoints.tensor_map import TensorLayout

_SCORES = ("softmax", "sigmoid")
_SUMS = {"sum": 1.0, "average": 0.5}  # of what the chosen experts make together and what the shared ones do
_GGUF_KEYS: GGUFKeys = {
    **WINDOW,
    **experts.gguf_keys("num_experts"),
    "leading_dense_block_count": ("first_k_dense_replace", 0),
    "expert_shared_count": ("num_shared_experts", 0),
    "expert_weights_norm": ("norm_topk_prob", False),
    "expert_weights_scale": ("routed_scaling_factor", 1.0),
    **dict.fromkeys(
        (
            "expert_gating_func",
            "expert_shared_feed_forward_length",
            "logit_scale",
            WINDOW_PATTERN,
        )
    ),
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    dense = experts.dense_layers(values, layers)
    kinds = hf_values.layer_types(values) or _usual_kinds(values, layers)
    turns = dense if hf_values.bounded(values, "prefix_dense_sliding_window_pattern") == 1 else ()
    sees_all = hf_values.layers_of(kinds, "full_attention")
    size = hf_values.whole_number(values, "intermediate_size")
    wide = hf_values.whole_number(values, "prefix_dense_intermediate_size", size)
    has_rms = values.get("rms_norm_eps") is not None
    epsilon = values["rms_norm_eps" if has_rms else "layer_norm_eps"]
    return dataclasses.replace(
        cohere.read_scaled(values | {"intermediate_size": wide, "rms_norm_eps": epsilon}),
        norm="rms" if has_rms else "layer_no_bias",
        layers_without_rope=tuple(layer for layer in sees_all if layer not in turns),
        layers_without_experts=dense,
        moe_intermediate_size=size,
        scoring_func=_scores(values),
        norm_topk_prob=_scores(values) == "softmax" or hf_values.flag(values, "norm_topk_prob"),
        routed_scaling_factor=hf_values.number(values, "routed_scaling_factor", 1.0),
        **experts.expert_fields(values, "num_experts"),
        **_shared(values, size, dense),
        **hf_values.windows_by_kind(values, kinds),
    )


def _usual_kinds(values: Mapping[str, Any], layers: int) -> list[str]:
    first = min(max(hf_values.whole_number(values, "first_k_dense_replace"), 0), layers)
    keys = ("prefix_dense_sliding_window_pattern", "sliding_window_pattern")
    before, behind = (hf_values.bounded(values, key) for key in keys)
    return hf_values.last_sees_all(first, before) + hf_values.last_sees_all(layers - first, behind)


def _scores(values: Mapping[str, Any]) -> str:
    """Read how a router weights the experts that it chose: softmax of their scores alone, or a sigmoid of each."""
    name = str(values["expert_selection_fn"])
    if name not in _SCORES:
        raise CheckpointError(f"config.json: expert_selection_fn is {name!r:.60}; supported: {', '.join(_SCORES)}.")
    return name


def _shared(values: Mapping[str, Any], size: int, dense: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields for what every token goes through beside the experts.

    An average is a factor of both, which all feed-forwards have, so that there may be none without experts.
    """
    count = hf_values.whole_number(values, "num_shared_experts")
    if not count:
        return {}
    name = str(values["shared_expert_combination_strategy"])
    if name not in _SUMS or (dense and _SUMS[name] != 1):
        raise CheckpointError(
            f"config.json: shared_expert_combination_strategy is {name!r:.60}, and {len(dense)} layers have no "
            "experts; supported is 'sum', and 'average' where all layers have experts."
        )
    factor = {} if _SUMS[name] == 1 else {"multipliers": Multipliers(mlp_down=_SUMS[name])}
    return {"shared_expert_intermediate_size": size * count, **factor}


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    experts.check_gguf_scoring(header)
    metadata = header.metadata
    is_rms = "cohere2moe.attention.layer_norm_rms_epsilon" in metadata
    values = gguf_header.to_hf_config(header, _GGUF_KEYS, norm="rms" if is_rms else "layer")
    return values | {
        "layer_norm_eps": values["rms_norm_eps"],
        "rms_norm_eps": values["rms_norm_eps"] if is_rms else None,
        "prefix_dense_intermediate_size": values["intermediate_size"],
        "intermediate_size": values["moe_intermediate_size"],
        "expert_selection_fn": "sigmoid",
        "layer_types": window_kinds(header),
        "logit_scale": float32_number(metadata, "cohere2moe.logit_scale"),
    }


# Both transformers and llama.cpp turn neighbouring dimensions of a head.
COHERE2_MOE = Architecture(
    model_type="cohere2_moe",
    defaults={
        **cohere.DEFAULTS,
        "head_dim": 128,
        "layer_norm_eps": 1e-5,
        "rms_norm_eps": None,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
        "prefix_dense_sliding_window_pattern": 1,
        "first_k_dense_replace": 0,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "expert_selection_fn": "softmax",
        "num_shared_experts": 0,
        "shared_expert_combination_strategy": "average",
    },
    read_config=_to_model_config,
    features={key: value for key, value in cohere.FEATURES.items() if key != "norm"},
    layout=TensorLayout(row_orders=llama.GGUF_ROW_ORDERS, has_more_layers=True),
    gguf=GGUFFamily(
        architecture="cohere2moe",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=experts.GGUF_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
        has_experts=True,
    ),
)

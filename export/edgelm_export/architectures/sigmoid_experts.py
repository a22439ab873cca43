"""What the rows share of families with experts as DeepSeek-V3 has them (arXiv:2412.19437).

A router scores them by sigmoids and chooses them with a bias; what they make is scaled, and added to what a shared one
makes. The first layers have a plain feed-forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import ModelConfig
from edgelm_export.architectures import experts, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, GGUFKeys

GGUF_ROUTED = experts.gguf_keys("n_routed_experts") | {
    "expert_shared_count": ("n_shared_experts", 0),
    "expert_weights_norm": ("norm_topk_prob", False),
    "expert_weights_scale": ("routed_scaling_factor", 1.0),
    "expert_group_count": ("n_group", 1),
    "expert_group_used_count": ("topk_group", 1),
    "expert_gating_func": None,
}
GGUF_DENSE = {"leading_dense_block_count": ("first_k_dense_replace", 0)}
_GGUF_KEYS = GGUF_ROUTED | GGUF_DENSE | {"expert_shared_feed_forward_length": None}
_GROUPS = ("n_group", "topk_group")


def fields(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the fields of ModelConfig for experts, of config.json's values under DeepSeek-V3's names.

    Raises:
        CheckpointError: there are none, or mlp_layer_types does not say of each layer whether it has some.
    """
    size, shared = (hf_values.whole_number(values, key) for key in ("moe_intermediate_size", "n_shared_experts"))
    return {
        "mlp_bias": False,
        "layers_without_experts": experts.dense_layers(values, layers),
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": size * shared or None,
        "scoring_func": "sigmoid",
        "norm_topk_prob": hf_values.flag(values, "norm_topk_prob"),
        "routed_scaling_factor": hf_values.number(values, "routed_scaling_factor", 1.0),
        "expert_choice_bias": True,
        **{key: hf_values.bounded({key: 1, **values}, key) for key in _GROUPS},
        **experts.expert_fields(values, "n_routed_experts"),
    }


def to_model_config(values: Mapping[str, Any], *, partial: float | None = None) -> ModelConfig:
    """Read config.json's values as those of a Llama with such experts, whose heads may have norms (`use_qk_norm`)."""
    config = llama.to_model_config(values, partial=partial)
    has_norms = hf_values.flag(values, "use_qk_norm")
    return dataclasses.replace(config, qk_norm=has_norms, **fields(values, config.num_hidden_layers))


def gguf_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS, *, turns_a_part: bool = False) -> dict[str, Any]:
    """Make config.json's values of a header."""
    experts.check_gguf_scoring(header)
    return gguf_header.to_hf_config(header, {**_GGUF_KEYS, **keys}, turns_a_part=turns_a_part)

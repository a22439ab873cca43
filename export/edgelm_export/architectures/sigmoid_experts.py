"""What the rows share of families with experts as DeepSeek-V3 has them (arXiv:2412.19437).

A router scores them by sigmoids and chooses them with a bias; what they make is scaled, and added to what a shared one
makes. The first layers have a plain feed-forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm_export.architectures import experts, hf_values
from edgelm_export.architectures.architecture import GGUFHeader
from edgelm_export.architectures.gguf_values import float32_number, whole_number

GGUF_KEYS = experts.GGUF_KEYS | {
    "expert_shared_count", "expert_shared_feed_forward_length", "leading_dense_block_count", "expert_weights_norm",
    "expert_weights_scale", "expert_gating_func", "expert_group_count", "expert_group_used_count",
    "nextn_predict_layers",
}  # fmt: skip
_GROUPS = ("n_group", "topk_group")


def fields(values: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return the fields of ModelConfig for experts, of config.json's values under DeepSeek-V3's names.

    Raises:
        CheckpointError: there are none.
    """
    size, shared, dense = (
        hf_values.whole_number(values, key)
        for key in ("moe_intermediate_size", "n_shared_experts", "first_k_dense_replace")
    )
    return {
        "mlp_bias": False,
        "layers_without_experts": tuple(range(min(dense, layers))),
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": size * shared or None,
        "scoring_func": "sigmoid",
        "norm_topk_prob": hf_values.flag(values, "norm_topk_prob"),
        "routed_scaling_factor": hf_values.number(values, "routed_scaling_factor", 1.0),
        "expert_choice_bias": True,
        **{key: hf_values.bounded({key: 1, **values}, key) for key in _GROUPS},
        **experts.expert_fields(values, "n_routed_experts"),
    }


def gguf_values(header: GGUFHeader, architecture: str) -> dict[str, Any]:
    """Make the same values of a GGUF file's metadata; `num_hidden_layers` without those that guess further tokens."""
    experts.check_gguf_scoring(header, architecture)
    metadata, name = header.metadata, architecture
    layers = whole_number(metadata, f"{name}.block_count")
    return {
        **experts.gguf_expert_values(header, name, "n_routed_experts"),
        "num_hidden_layers": layers - whole_number(metadata, f"{name}.nextn_predict_layers", 0),
        "moe_intermediate_size": whole_number(metadata, f"{name}.expert_feed_forward_length"),
        "n_shared_experts": whole_number(metadata, f"{name}.expert_shared_count", 0),
        "first_k_dense_replace": whole_number(metadata, f"{name}.leading_dense_block_count", 0),
        "norm_topk_prob": metadata.get(f"{name}.expert_weights_norm", False),
        "routed_scaling_factor": float32_number(metadata, f"{name}.expert_weights_scale", 1.0),
        "n_group": whole_number(metadata, f"{name}.expert_group_count", 1),
        "topk_group": whole_number(metadata, f"{name}.expert_group_used_count", 1),
    }

"""Poolside's Laguna (XS.2, XS 2.1): experts as DeepSeek-V3 has them; layers with a window have more heads of queries,
turn more of each, and all multiply what heads gather by the softplus of a gate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gemma3, gguf_header, hf_values, llama, sigmoid_experts
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import WINDOW_PATTERN, GGUFKeys, float32_number, whole_number, window_kinds
from edgelm_export.checkpoints.tensor_map import TensorLayout

_GATES = {True: True, "per-head": True, "per-element": False}  # whether there is one for each head
_UNSUPPORTED = ("attention_bias", "moe_apply_router_weight_on_input", "moe_router_logit_softcapping")
_PATTERN = 4  # of these, the first layer of a GGUF file sees all
_GGUF_KEYS: GGUFKeys = {
    **experts.gguf_keys("num_experts"),
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_scale": ("moe_routed_scaling_factor", 1.0),
    **dict.fromkeys(("attention.sliding_window", WINDOW_PATTERN, "rope.freq_base_swa", "rope.dimension_count_swa")),
}
_GATE = "model.layers.{i}.self_attn.gate_proj"
_ROUTER = "model.layers.{i}.mlp.gate"
_CHOICE_BIAS = f"{_ROUTER}.e_score_correction_bias"
_NAMES = {
    **experts.shared_expert_names("model.layers.{i}.mlp"),
    _CHOICE_BIAS: "model.layers.{i}.mlp.experts.e_score_correction_bias",
    _GATE: "model.layers.{i}.self_attn.g_proj",
}
_MLX_NAMES = {
    **_NAMES,
    **experts.mlx_names("model.layers.{i}.mlp.switch_mlp"),
    _CHOICE_BIAS: _CHOICE_BIAS,
    _ROUTER: f"{_ROUTER}.proj",
}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    for key in _UNSUPPORTED:
        if values.get(key):
            raise CheckpointError(f"config.json: {key} is {values[key]!r:.60}; supported is none.")
    if isinstance(values["gating"], (list, dict)) or values["gating"] not in _GATES:
        raise CheckpointError(
            f"config.json: gating is {values['gating']!r:.60}; supported: true, 'per-head', 'per-element'."
        )
    part = _part_of_windows(values)
    values |= gemma3.rotations(values, 5e5, 1e4)
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or ["full_attention"] * layers
    windows = hf_values.windows(values, hf_values.whole_number(values, "sliding_window"), kinds)
    heads, own = _heads(values, kinds, bool(windows))
    # How much turns stands by kind of layer alone.
    config = llama.to_model_config({**values, "num_attention_heads": heads, "partial_rotary_factor": None}, partial=1.0)
    return dataclasses.replace(
        config,
        num_global_attention_heads=own,
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4) if windows else None,
        local_partial_rotary_factor=part if windows else None,
        attention_output_gate=True,
        attention_gate_per_head=_GATES[values["gating"]],
        layers_without_experts=experts.dense_layers(values, layers),
        moe_intermediate_size=hf_values.whole_number(values, "moe_intermediate_size"),
        shared_expert_intermediate_size=hf_values.whole_number(values, "shared_expert_intermediate_size"),
        routed_scaling_factor=hf_values.number(values, "moe_routed_scaling_factor", 1.0),
        **windows,
        **experts.expert_fields(values, "num_experts"),
    )


def _part_of_windows(values: Mapping[str, Any]) -> float:
    """Return how much of each head turns in layers with a window."""
    settings = values["rope_parameters"]
    local = settings.get("sliding_attention") if isinstance(settings, Mapping) else None
    return hf_values.number(local if isinstance(local, Mapping) else {}, "partial_rotary_factor", 1.0)


def _heads(values: Mapping[str, Any], kinds: list[str], has_windows: bool) -> tuple[int, int | None]:
    """Return how many heads of queries there are, and in layers that see all tokens, if it is another number."""
    usual = hf_values.whole_number(values, "num_attention_heads")
    listed = values.get("num_attention_heads_per_layer", [usual] * len(kinds))
    by_kind: dict[str, int] = dict(zip(kinds, listed, strict=False)) if isinstance(listed, list) else {}
    if listed != [by_kind.get(kind) for kind in kinds]:
        raise CheckpointError(
            f"config.json: num_attention_heads_per_layer is {listed!r:.80}; supported is one number for layers with a "
            f"window, and one for those without, of {len(kinds)} layers."
        )
    own = {"num_attention_heads": by_kind.get("full_attention", usual)}
    heads = {"num_attention_heads": by_kind.get("sliding_attention", usual)} if has_windows else own
    found, every = (hf_values.bounded(each, "num_attention_heads") for each in (heads, own))
    return found, None if every == found else every


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    header, heads = gguf_header.by_layer(header, "attention.head_count")
    header = header.changed({"attention.head_count": heads[0] if heads else 0})
    metadata = header.metadata
    values = sigmoid_experts.gguf_values(header, _GGUF_KEYS, turns_a_part=True)
    head_dim = values["head_dim"]
    window = whole_number(metadata, "laguna.attention.sliding_window", 0)
    kinds = hf_values.first_sees_all(len(heads), _PATTERN if window else 1)
    if window and isinstance(metadata.get(f"laguna.{WINDOW_PATTERN}"), list):
        kinds = window_kinds(header)
    dense = values["first_k_dense_replace"]
    every = {"rope_theta": values.pop("rope_theta"), **(values.pop("rope_scaling") or {})}
    turning = whole_number(metadata, "laguna.rope.dimension_count_swa", head_dim)
    local = {
        "rope_theta": float32_number(metadata, "laguna.rope.freq_base_swa", every["rope_theta"]),
        "partial_rotary_factor": turning / max(head_dim, 1),
    }
    every["partial_rotary_factor"] = values.pop("partial_rotary_factor")
    gates = header.shapes.get("blk.0.attn_gate.weight", (0,))[0]
    return {
        **values,
        "num_attention_heads_per_layer": heads,
        "layer_types": kinds,
        "sliding_window": window or None,
        "rope_parameters": {"full_attention": every, "sliding_attention": local},
        "gating": "per-head" if gates == values["num_attention_heads"] else "per-element",
        "mlp_layer_types": ["dense" if layer < dense else "sparse" for layer in range(len(heads))],
    }


LAGUNA = Architecture(
    model_type="laguna",
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "gating": True,
        "first_k_dense_replace": 1,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "rope_parameters": {
            "full_attention": {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_theta": 1e4},
        },
    },
    null_keys=frozenset(),
    read_config=_to_model_config,
    features={
        "mlp_bias": False,
        "qk_norm": True,
        "attention_gate_act": "softplus",
        "scoring_func": "sigmoid",
        "expert_choice_bias": True,
    },
    layout=TensorLayout(names=_NAMES),
    mlx=TensorLayout(names=_MLX_NAMES),
    gguf=GGUFFamily(
        architecture="laguna",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names={**experts.GGUF_NAMES, **llama.GGUF_QK_NORMS, _GATE: "blk.{i}.attn_gate"}),
        has_experts=True,
    ),
)

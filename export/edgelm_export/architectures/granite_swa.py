"""Granite Swash: a Granite with attention sinks, of which three in four layers attend in a window.

Some have experts (model_type granitemoe_swa).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, granite, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import NO_KEYS, WINDOW, WINDOW_PATTERN, GGUFKeys
from edgelm_export.checkpoints.tensor_map import TensorLayout

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "sliding_window": 128,
    "bos_token_id": 100257,
    "eos_token_id": 100257,
}
_PATTERN = 4  # of these, the first layer sees all
_SINKS = "model.layers.{i}.self_attn.sinks"
_MOE = "model.layers.{i}.block_sparse_moe"
_EXPERT = "model.layers.{i}.mlp.experts.{e}"
# All experts of a layer are one tensor.
_NAMES = granite.NAMES | {
    "model.layers.{i}.mlp.gate": f"{_MOE}.router",
    f"{_EXPERT}.gate_proj.weight": f"{_MOE}.experts.gate_up_proj",
    f"{_EXPERT}.up_proj.weight": f"{_MOE}.experts.gate_up_proj",
    f"{_EXPERT}.down_proj.weight": f"{_MOE}.experts.down_proj",
}
_GGUF_SINKS = {_SINKS: "blk.{i}.attn_sinks.weight"}
_GGUF_NAMES = (
    experts.GGUF_NAMES
    | _GGUF_SINKS
    | {f"{_EXPERT}.{part}_proj": "blk.{i}.ffn_gate_up_exps" for part in ("gate", "up")}
    | {f"model.layers.{{i}}.mlp.shared_experts.{part}_proj": "blk.{i}.ffn_up_shexp" for part in ("gate", "up")}
)
_GGUF_KEYS: GGUFKeys = {**WINDOW, WINDOW_PATTERN: None, "attention.rope_pattern": None}


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or hf_values.first_sees_all(layers, _PATTERN)
    window = hf_values.optional_whole_number(values, "sliding_window")
    config = granite.GRANITE.to_model_config(values)
    return dataclasses.replace(
        config,
        **_rotations(values.get("layer_rope_theta"), kinds, config),
        **hf_values.windows(values, window, kinds),
    )


def _rotations(listed: object, kinds: list[str], config: ModelConfig) -> dict[str, Any]:
    """Return the fields of ModelConfig for a base of each layer, of which zero means none.

    Raises:
        CheckpointError: there is not one for each, or layers of one kind, or with scaled positions, have several.
    """
    if listed is None:
        return {}
    if not isinstance(listed, list) or len(listed) != len(kinds) or not all(map(hf_values.is_finite, listed)):
        raise CheckpointError(f"config.json: layer_rope_theta is {listed!r:.60}; it must have a number for each layer.")
    bases = {kind: {base for base, of in zip(listed, kinds, strict=True) if of == kind and base} for kind in set(kinds)}
    every, local = (bases.get(kind, set()) for kind in ("full_attention", "sliding_attention"))
    is_scaled = config.rope_scaling.rope_type != "default"
    if max(len(every), len(local)) > 1 or (is_scaled and len(every | local) > 1):
        raise CheckpointError(
            f"config.json: layer_rope_theta is {listed!r:.60}; supported is one base for layers with a window and one "
            "for others, the same where positions are scaled."
        )
    theta = next(iter(every or local), config.rope_theta)
    return {
        "rope_theta": float(theta),
        "rope_local_theta": float(next(iter(local))) if local - {theta} else None,
        "layers_without_rope": tuple(layer for layer, base in enumerate(listed) if not base),
    }


def _to_moe_config(values: dict[str, Any]) -> ModelConfig:
    return dataclasses.replace(_to_model_config(values), **granite.expert_fields(values))


def _gguf_values(header: GGUFHeader, keys: GGUFKeys = NO_KEYS) -> dict[str, Any]:
    values, metadata = granite.gguf_values(header, {**keys, **_GGUF_KEYS}), header.metadata
    patterns = {}
    for key, yes, no in (
        ("sliding_window_pattern", "sliding_attention", "full_attention"),
        ("rope_pattern", values["rope_theta"], 0),
    ):
        listed = metadata.get(f"granite_swa.attention.{key}")
        patterns[key] = [yes if is_one else no for is_one in listed] if isinstance(listed, list) else None
    return {
        **values,
        "layer_types": patterns["sliding_window_pattern"],
        "layer_rope_theta": patterns["rope_pattern"],
    }


GRANITE_SWA = Architecture(
    model_type="granite_swa",
    defaults=_DEFAULTS,
    read_config=_to_model_config,
    features={"attention_sinks": True},
    gguf=GGUFFamily(
        architecture="granite_swa",
        to_hf_config=_gguf_values,
        layout=TensorLayout(names=llama.GGUF_NAMES | _GGUF_SINKS, row_orders=llama.GGUF_ROW_ORDERS),
    ),
)
GRANITE_MOE_SWA = Architecture(
    model_type="granitemoe_swa",
    defaults={"sliding_window": _DEFAULTS["sliding_window"]},  # others are those of Granite 3
    read_config=_to_moe_config,
    features={"attention_sinks": True},
    layout=TensorLayout(names=_NAMES),
    gguf=GGUFFamily(
        architecture="granite_swa",
        to_hf_config=lambda header: _gguf_values(header, granite.GGUF_MOE_KEYS),
        layout=TensorLayout(names=_GGUF_NAMES, row_orders=llama.GGUF_ROW_ORDERS),
        has_experts=True,
    ),
)

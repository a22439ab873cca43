"""Gemma 4: Gemma 3 with larger heads in the layers that see all, shared keys, and features of each layer's own.

That of 26B has experts beside each feed-forward.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import experts, gemma, gemma3, gemma3n, gguf_header, hf_values, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gguf_values import (
    WINDOW,
    WINDOW_PATTERN,
    GGUFKeys,
    float32_number,
    whole_number,
    window_kinds,
)
from edgelm_export.checkpoints.tensor_map import TensorLayout

_PATTERN = 6
_GGUF_NAMES = gemma3n.GGUF_NAMES | {"model.layers.{i}.layer_scalar": "blk.{i}.layer_output_scale.weight"}
_MLP = "model.layers.{i}.mlp"
_PARTS = ("gate", "up", "down")
# With experts, the feed-forward is the one beside them.
_EXPERT_NAMES = {
    f"{_MLP}.gate": "model.layers.{i}.router.proj",
    f"{_MLP}.gate.per_expert_scale": "model.layers.{i}.router.per_expert_scale",
    f"{_MLP}.router_norm.weight": "model.layers.{i}.router.scale",
    f"{_MLP}.experts.{{e}}.gate_proj.weight": "model.layers.{i}.experts.gate_up_proj",
    f"{_MLP}.experts.{{e}}.up_proj.weight": "model.layers.{i}.experts.gate_up_proj",
    f"{_MLP}.experts.{{e}}.down_proj.weight": "model.layers.{i}.experts.down_proj",
    **{f"{_MLP}.shared_experts.{part}_proj": f"{_MLP}.{part}_proj" for part in _PARTS},
    f"{_MLP}.experts_norm": "model.layers.{i}.pre_feedforward_layernorm_2",
    f"{_MLP}.post_experts_norm": "model.layers.{i}.post_feedforward_layernorm_2",
    f"{_MLP}.post_shared_experts_norm": "model.layers.{i}.post_feedforward_layernorm_1",
}
_GGUF_EXPERT_NAMES = {
    f"{_MLP}.gate": "blk.{i}.ffn_gate_inp",
    f"{_MLP}.gate.per_expert_scale": "blk.{i}.ffn_down_exps.scale",
    f"{_MLP}.router_norm.weight": "blk.{i}.ffn_gate_inp.scale",
    f"{_MLP}.experts.{{e}}.gate_proj": "blk.{i}.ffn_gate_up_exps",
    f"{_MLP}.experts.{{e}}.up_proj": "blk.{i}.ffn_gate_up_exps",
    f"{_MLP}.experts.{{e}}.down_proj": "blk.{i}.ffn_down_exps",
    **{f"{_MLP}.shared_experts.{part}_proj": f"blk.{{i}}.ffn_{part}" for part in _PARTS},
    f"{_MLP}.experts_norm": "blk.{i}.pre_ffw_norm_2",
    f"{_MLP}.post_experts_norm": "blk.{i}.post_ffw_norm_2",
    f"{_MLP}.post_shared_experts_norm": "blk.{i}.post_ffw_norm_1",
}
_GGUF_EXPERTS = experts.gguf_keys("num_experts", "top_k_experts")
_GGUF_KEYS: GGUFKeys = {
    **WINDOW,
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input", 0),
    **dict.fromkeys(
        (
            "attention.shared_kv_layers", WINDOW_PATTERN, "attention.key_length_swa", "attention.value_length_swa",
            "rope.freq_base_swa", "rope.dimension_count_swa", "final_logit_softcapping", *_GGUF_EXPERTS,
        )
    ),
}  # fmt: skip
_STILL = np.float32(1e30)
_ROPE_TYPES = ("default", "proportional")


def _to_model_config(values: dict[str, Any]) -> ModelConfig:
    gemma.refuse_sight_of_later_tokens(_without_sight_of_images(values))
    values |= _rotations(values)
    layers = hf_values.bounded(values, "num_hidden_layers", MAX_LAYERS)
    kinds = hf_values.layer_types(values) or hf_values.last_sees_all(layers, _PATTERN)
    per_layer = hf_values.whole_number(values, "hidden_size_per_layer_input")
    _refuse_another_vocabulary(values, per_layer)
    config = llama.to_model_config(values)
    kinds = [*kinds[:-1], "full_attention"]  # as in transformers
    heads = _heads_of_layers_that_see_all(values, kinds)
    return dataclasses.replace(
        config,
        norm_placement="both",
        hidden_act=hf_values.activation(values, "gelu_pytorch_tanh", "hidden_activation"),
        embedding_multiplier=config.hidden_size**0.5,
        attention_multiplier=1.0,
        final_logit_softcapping=hf_values.optional_number(values, "final_logit_softcapping"),
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4),
        layer_types=tuple(kinds),
        sliding_window=hf_values.bounded(values, "sliding_window"),
        global_head_dim=_other(heads, "head_dim", config.head_dim),
        num_global_key_value_heads=_other(heads, "num_key_value_heads", config.num_key_value_heads),
        attention_k_eq_v=hf_values.flag(values, "attention_k_eq_v"),
        num_kv_shared_layers=hf_values.whole_number(values, "num_kv_shared_layers", 0),
        hidden_size_per_layer_input=per_layer,
        use_double_wide_mlp=hf_values.flag(values, "use_double_wide_mlp"),
        **_expert_fields(values),
    )


def _expert_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    if not hf_values.flag(values, "enable_moe_block"):
        return {}
    return {
        **experts.expert_fields(values, "num_experts", "top_k_experts"),
        "moe_intermediate_size": hf_values.whole_number(values, "moe_intermediate_size"),
        "shared_expert_intermediate_size": hf_values.whole_number(values, "intermediate_size"),
        "expert_norms": True,
        "expert_scales": True,
    }


def _heads_of_layers_that_see_all(values: Mapping[str, Any], kinds: Sequence[str]) -> Mapping[str, Any]:
    """Return what those layers have in the place of head_dim and num_key_value_heads.

    transformers 5 writes it layer by layer, as per_layer_config.
    """
    if values.get("per_layer_config") is None:
        own: dict[str, Any] = {"head_dim": values["global_head_dim"]}
        if hf_values.flag(values, "attention_k_eq_v") and values.get("num_global_key_value_heads") is not None:
            own["num_key_value_heads"] = values["num_global_key_value_heads"]
        return own
    by_layer = values["per_layer_config"]
    if isinstance(by_layer, Mapping):  # by numbers, each with as many digits as the last layer's
        by_layer = {layer.lstrip("0") or "0": own for layer, own in by_layer.items()}
    layers = [str(layer) for layer, kind in enumerate(kinds) if kind == "full_attention"]
    listed = by_layer.get(layers[0], {}) if isinstance(by_layer, Mapping) else None
    expected = dict.fromkeys(layers, listed) if listed else {}
    if not isinstance(listed, Mapping) or listed.keys() - {"head_dim", "num_key_value_heads"} or by_layer != expected:
        raise CheckpointError(
            f"config.json: per_layer_config is {by_layer!r:.80}; supported are a head_dim and num_key_value_heads that "
            f"all layers of full_attention have ({', '.join(layers)}), and no other has."
        )
    return listed


def _other(values: Mapping[str, Any], key: str, usual: int) -> int | None:
    """Read a whole number; None where it is the usual one."""
    number = hf_values.whole_number(values, key, usual)
    return None if number == usual else number


def _without_sight_of_images(values: Mapping[str, Any]) -> dict[str, Any]:
    """Pass over that the tokens of an image see each other: there are none in a text."""
    return {key: value for key, value in values.items() if (key, value) != ("use_bidirectional_attention", "vision")}


def _rotations(values: Mapping[str, Any]) -> dict[str, Any]:
    read = gemma3.rotations(values, 1e6, 1e4)
    settings = read.get("rope_parameters")
    if not isinstance(settings, Mapping):
        raise CheckpointError(
            f"config.json: rope_parameters is {values['rope_parameters']!r:.80}; it must have settings for "
            "full_attention and sliding_attention."
        )
    kind = settings.get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"config.json: the layers that see all have rope type {kind!r}; supported: {', '.join(_ROPE_TYPES)}."
        )
    unused = ("partial_rotary_factor",) if kind == "default" else ()  # transformers turns all of a head then
    return {**read, "rope_parameters": {key: value for key, value in settings.items() if key not in unused}}


def _refuse_another_vocabulary(values: Mapping[str, Any], per_layer: int) -> None:
    rows = hf_values.whole_number(values, "vocab_size_per_layer_input")
    if per_layer and rows != values["vocab_size"]:
        raise CheckpointError(
            f"config.json: vocab_size_per_layer_input is {rows}; it must be vocab_size, {values['vocab_size']}."
        )


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    kinds = window_kinds(header)
    shared = whole_number(header.metadata, "gemma4.attention.shared_kv_layers", 0)
    heads, is_wide = _gguf_kv_heads(header, kinds), False
    sizes = header.metadata.get("gemma4.feed_forward_length")
    if isinstance(sizes, array) and sizes:
        own = min(max(len(kinds) - shared, 0), len(kinds))
        is_wide = sizes.tolist() == [sizes[0]] * own + [2 * sizes[0]] * (len(kinds) - own) and own < len(kinds)
        header = header.changed({"feed_forward_length": sizes[0] if is_wide else sizes})
    has_experts = whole_number(header.metadata, "gemma4.expert_count", 0)
    keys = {**_GGUF_KEYS, **(_GGUF_EXPERTS if has_experts else {})}
    values = gguf_header.to_hf_config(header.changed({"attention.head_count_kv": heads[0]}), keys)
    metadata = header.metadata
    head_dim = whole_number(metadata, "gemma4.attention.key_length_swa", values["head_dim"])
    for key in ("attention.value_length_swa", "rope.dimension_count_swa"):
        if whole_number(metadata, f"gemma4.{key}", head_dim) != head_dim:
            raise CheckpointError(
                f"gemma4.{key} is {metadata[f'gemma4.{key}']}; supported is the head's own size, {head_dim}."
            )
    cap = "gemma4.final_logit_softcapping"
    theta, local_theta = values.pop("rope_theta"), float32_number(metadata, "gemma4.rope.freq_base_swa", 1e4)
    if values.pop("rope_scaling") is not None:
        raise CheckpointError("gemma4.rope.scaling.type is set; supported is none.")
    first = kinds.index("full_attention") if "full_attention" in kinds else 0
    return {
        **values,
        "head_dim": head_dim,
        "global_head_dim": values["head_dim"],
        "num_global_key_value_heads": None if heads[0] == heads[1] else heads[1],
        "layer_types": kinds,
        "attention_k_eq_v": f"blk.{first}.attn_v.weight" not in header.shapes,
        "num_kv_shared_layers": shared,
        "use_double_wide_mlp": is_wide,
        "vocab_size_per_layer_input": values["vocab_size"],
        "final_logit_softcapping": float32_number(metadata, cap) if cap in metadata else None,
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, **_gguf_rotation(header, values["head_dim"])},
            "sliding_attention": {"rope_theta": local_theta, "rope_type": "default"},
        },
        "enable_moe_block": bool(has_experts),
    }


def _gguf_kv_heads(header: GGUFHeader, kinds: Sequence[str]) -> tuple[Any, Any]:
    """Return how many key-value heads the layers with a window have, and the others; all alike is one number."""
    heads = header.metadata.get("gemma4.attention.head_count_kv")
    if not isinstance(heads, array):
        return heads, heads
    by_kind = dict(zip(kinds, heads, strict=False))
    if heads.tolist() != [by_kind.get(kind) for kind in kinds]:
        raise CheckpointError(
            f"gemma4.attention.head_count_kv is {str(heads.tolist())[:60]}; supported is one number of all layers of a "
            "kind."
        )
    every = by_kind.get("full_attention", heads[0])
    return by_kind.get("sliding_attention", every), every


def _gguf_rotation(header: GGUFHeader, head_dim: int) -> dict[str, Any]:
    """Read which pairs of a head turn: llama.cpp divides the frequencies of the others by 1e30."""
    factors = header.rope_factors.get("rope_freqs.weight")
    if factors is None:
        return {"rope_type": "default"}
    turning = int((factors == 1).sum())
    still = factors[turning:]
    if factors.shape != (head_dim // 2,) or not (factors[:turning] == 1).all() or not (still >= _STILL).all():
        raise CheckpointError("rope_freqs.weight does not say which of a head's first pairs turn, as Gemma 4's does.")
    return {"rope_type": "proportional", "partial_rotary_factor": turning / len(factors)}


_LAYOUT = TensorLayout(ignored=gemma3n.UNUSED)
_EXPERT_LAYOUT = TensorLayout(names=_EXPERT_NAMES, ignored=gemma3n.UNUSED)

GEMMA4 = Architecture(
    model_type="gemma4_text",
    defaults={
        "vocab_size": 262_144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "sliding_window": 512,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
    },
    null_keys=frozenset({"bos_token_id", "eos_token_id"}),
    read_config=_to_model_config,
    reads_single_layers=True,
    features={"mlp_bias": False, "qk_norm": True, "v_norm": True, "layer_scalar": True},
    layout_of=lambda config: _EXPERT_LAYOUT if config.num_experts else _LAYOUT,
    gguf=GGUFFamily(
        architecture="gemma4",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(
            names=_GGUF_NAMES | _GGUF_EXPERT_NAMES,
            ignored=gemma3n.GGUF_UNUSED | {"rope_freqs.weight"},
        ),
    ),
)

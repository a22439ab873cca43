"""Gemma 4: Gemma 3 with larger heads in the layers that see all, shared keys, and features of each layer's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.config import MAX_LAYERS, ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.architectures import gemma, gemma3, hf_values, llama
from edgelm_export.architectures.architecture import Architecture
from edgelm_export.tensor_map import TensorLayout

# What transformers takes where config.json has no such key.
_DEFAULTS: Mapping[str, Any] = {
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
}
_TOKENS = ("bos_token_id", "eos_token_id")  # null is none of them; of other keys it is the default
_PATTERN = 6
_ROPE_TYPES = ("default", "proportional")
# What a folder has of layers that look at the keys and values of others.
_UNUSED = frozenset(
    f"model.layers.{{i}}.self_attn.{name}"
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias", "k_norm.weight")
)


def _to_model_config(values: Mapping[str, Any]) -> ModelConfig:
    values = {**_DEFAULTS, **{key: value for key, value in values.items() if value is not None or key in _TOKENS}}
    gemma.refuse_sight_of_later_tokens(_without_sight_of_images(values))
    if hf_values.flag(values, "enable_moe_block"):
        raise CheckpointError("config.json: enable_moe_block is true; Gemma 4 is read without experts alone.")
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
        model_type="gemma4_text",
        norm_placement="both",
        hidden_act=hf_values.activation(values, "gelu_pytorch_tanh", "hidden_activation"),
        mlp_bias=False,
        embedding_multiplier=config.hidden_size**0.5,
        attention_multiplier=1.0,
        final_logit_softcapping=hf_values.optional_number(values, "final_logit_softcapping"),
        qk_norm=True,
        v_norm=True,
        layer_scalar=True,
        rope_local_theta=hf_values.number(values, "rope_local_base_freq", 1e4),
        layer_types=tuple(kinds),
        sliding_window=hf_values.bounded(values, "sliding_window"),
        global_head_dim=_other(heads, "head_dim", config.head_dim),
        num_global_key_value_heads=_other(heads, "num_key_value_heads", config.num_key_value_heads),
        attention_k_eq_v=hf_values.flag(values, "attention_k_eq_v"),
        num_kv_shared_layers=hf_values.whole_number(values, "num_kv_shared_layers", 0),
        hidden_size_per_layer_input=per_layer,
        use_double_wide_mlp=hf_values.flag(values, "use_double_wide_mlp"),
    )


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


GEMMA4 = Architecture(
    model_type="gemma4_text",
    to_model_config=_to_model_config,
    layout=TensorLayout(ignored=_UNUSED),
    gguf=None,
)

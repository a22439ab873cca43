"""Reading Hugging Face's config.json: typed values with defaults; features that we do not have are refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgelm.config import ACTIVATIONS, ROPE_TYPES, RopeScaling
from edgelm.errors import CheckpointError

# Names that transformers has for the same function.
_ACTIVATION_NAMES = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh"} | {name: name for name in ACTIVATIONS}

# The settings that each rope type reads, as transformers does; those of another type have no effect there.
_ROPE_SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
}
_KNOWN_ROPE_SETTINGS = {"rope_type", "type", "rope_theta", "finetuned"}.union(*_ROPE_SETTINGS.values())
# Settings that we do not have, with the values that turn them off.
_NEUTRAL_ROPE_SETTINGS = {"partial_rotary_factor": 1.0, "truncate": True}


def whole_number(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Read a whole number; None and absence mean the default, which None makes an error."""
    value = values.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be a whole number.")
    return value


def number(values: Mapping[str, Any], key: str, default: float) -> float:
    """Read a finite number; None and absence mean the default."""
    value = values.get(key)
    value = default if value is None else value
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be a number.")
    return float(value)


def flag(values: Mapping[str, Any], key: str) -> bool:
    """Read a truth value; None and absence mean False."""
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be true or false.")
    return value


def activation(values: Mapping[str, Any], default: str) -> str:
    """Read hidden_act under the name that ModelConfig has for it."""
    name = values.get("hidden_act", default)
    if not isinstance(name, str) or name not in _ACTIVATION_NAMES:
        raise CheckpointError(
            f"config.json: hidden_act {name!r} is not supported; supported: {', '.join(_ACTIVATION_NAMES)}."
        )
    return _ACTIVATION_NAMES[name]


def token_ids(values: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Read a token id, a list of them, or none."""
    value = values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(id_, int) or isinstance(id_, bool) for id_ in ids):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be a token id or a list of them.")
    return tuple(dict.fromkeys(ids))


def refuse_windows(values: Mapping[str, Any]) -> None:
    """Refuse attention in a window, of all layers (`use_sliding_window`) or of some (`layer_types`).

    Raises:
        CheckpointError: one of them asks for it.
    """
    if flag(values, "use_sliding_window"):
        raise CheckpointError("config.json: use_sliding_window is true; attention in a window is not supported.")
    kinds = values.get("layer_types") or []
    others = sorted({str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])} - {"full_attention"})
    if others:
        raise CheckpointError(f"config.json: layer_types has {', '.join(others)}; supported is full_attention alone.")


def rope(values: Mapping[str, Any], context_length: int) -> tuple[float, RopeScaling]:
    """Read the rotary base and its scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    context_length: stands in for an absent original_max_position_embeddings, as in transformers.

    Raises:
        CheckpointError: the rope type or one of its settings is not supported.
    """
    settings = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"config.json: the rope settings are {settings!r}; they must be an object.")
    settings = {key: value for key, value in settings.items() if value is not None}
    rope_type = settings.get("rope_type", settings.get("type", "default"))
    if not isinstance(rope_type, str) or rope_type not in _ROPE_SETTINGS:
        raise CheckpointError(
            f"config.json: rope type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}."
        )
    for key, value in {**_partial_rotary(values), **settings}.items():
        if key not in _KNOWN_ROPE_SETTINGS and value != _NEUTRAL_ROPE_SETTINGS.get(key):
            raise CheckpointError(f"config.json: the rope setting {key} = {value!r} is not supported; leave it out.")
    theta = number(settings, "rope_theta", number(values, "rope_theta", 10000.0))
    used: dict[str, Any] = {key: number(settings, key, 0.0) for key in _ROPE_SETTINGS[rope_type] if key in settings}
    if "original_max_position_embeddings" in _ROPE_SETTINGS[rope_type]:
        inner = whole_number(settings, "original_max_position_embeddings", context_length)
        used["original_max_position_embeddings"] = whole_number(values, "original_max_position_embeddings", inner)
    return theta, RopeScaling(rope_type=rope_type, **used)


def _partial_rotary(values: Mapping[str, Any]) -> dict[str, Any]:
    value = values.get("partial_rotary_factor")
    return {} if value is None else {"partial_rotary_factor": value}

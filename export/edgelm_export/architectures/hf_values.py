"""Reading Hugging Face's config.json: typed values with defaults; features that we do not have are refused by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from edgelm.architecture.rope_scaling import ROPE_TYPES, RopeScaling
from edgelm.arguments import is_number, is_whole
from edgelm.config import ACTIVATIONS
from edgelm.errors import CheckpointError

# Names that transformers has for the same function.
_TANH_FORMS = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
_ACTIVATION_NAMES = {
    "swish": "silu",
    "gelu_python": "gelu",
    **dict.fromkeys(_TANH_FORMS, "gelu_pytorch_tanh"),
    **{name: name for name in ACTIVATIONS},
}

# The settings that each rope type reads, as transformers does; those of another type have no effect there.
_ROPE_SETTINGS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow"),
    "longrope": ("factor", "attention_factor"),
    "proportional": ("factor", "partial_rotary_factor"),
}
_LARGEST_CONTEXT = 2**31  # a larger one is refused by ModelConfig, but computed with before
# They count from an original context.
_STRETCHED = ("llama3", "yarn", "longrope")
_KNOWN_ROPE_SETTINGS = {
    "rope_type", "type", "rope_theta", "finetuned", "original_max_position_embeddings", "truncate", "mscale",
    "mscale_all_dim", "attn_factor", "short_factor", "long_factor", "partial_rotary_factor",
}.union(*_ROPE_SETTINGS.values())  # fmt: skip


def whole_number(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Read a whole number; None and absence mean the default, which None makes an error."""
    value = values.get(key)
    value = default if value is None else value
    if not is_whole(value):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be a whole number.")
    return value


def bounded(values: Mapping[str, Any], key: str, most: int = 2**31 - 1) -> int:
    """Read a whole number from 1 to `most`, which is computed with before a ModelConfig bounds anything."""
    value = whole_number(values, key)
    if not 1 <= value <= most:
        raise CheckpointError(f"config.json: {key} is {value!r:.60}; it must be from 1 to {most}.")
    return value


def number(values: Mapping[str, Any], key: str, default: float) -> float:
    """Read a finite number; None and absence mean the default."""
    value = values.get(key)
    value = default if value is None else value
    if not is_finite(value):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be a number.")
    return float(value)


def is_finite(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that a float holds: JSON may have whole ones that none does."""
    return is_number(value) and abs(value) <= sys.float_info.max


def flag(values: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """Read a truth value; absence means the default, and None False."""
    value = values.get(key, default) or False
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be true or false.")
    return value


def optional_number(values: Mapping[str, Any], key: str) -> float | None:
    """Read a finite number; None and absence mean None."""
    return None if values.get(key) is None else number(values, key, 0.0)


def optional_whole_number(values: Mapping[str, Any], key: str) -> int | None:
    """Read a whole number; None and absence mean None."""
    return None if values.get(key) is None else whole_number(values, key)


def activation(values: Mapping[str, Any], default: str, key: str = "hidden_act") -> str:
    """Read an activation under the name that ModelConfig has for it."""
    name = values.get(key, default)
    if not isinstance(name, str) or name not in _ACTIVATION_NAMES:
        raise CheckpointError(
            f"config.json: {key} {name!r} is not supported; supported: {', '.join(_ACTIVATION_NAMES)}."
        )
    return _ACTIVATION_NAMES[name]


def biases(are_there: bool) -> dict[str, Any]:
    """Return the fields of ModelConfig for biases of all projections of a layer, or of none."""
    return dict.fromkeys(("mlp_bias", "attention_bias", "attention_output_bias"), are_there)


def first_token_id(values: Mapping[str, Any], *keys: str) -> int | None:
    """Read the first token id that there is at one of these keys."""
    return next((id_ for key in keys for id_ in token_ids(values, key)), None)


def token_ids(values: Mapping[str, Any], key: str, file: str = "config.json") -> tuple[int, ...]:
    """Read a token id, a list of them, or none; `file` is what an error names."""
    value = values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(map(is_whole, ids)):
        raise CheckpointError(f"{file}: {key} is {value!r}; it must be a token id or a list of them.")
    return tuple(dict.fromkeys(ids))


def last_sees_all(layers: int, pattern: int, others: str = "sliding_attention") -> list[str]:
    """Return the kinds of layers of which, of each `pattern`, the last sees all; the others attend in a window, or what
    `others` says.
    """
    return [others if (layer + 1) % pattern else "full_attention" for layer in range(layers)]


def first_sees_all(layers: int, pattern: int) -> list[str]:
    """Return the kinds of layers of which, of each `pattern`, the first sees all; the others attend in a window."""
    return ["sliding_attention" if layer % pattern else "full_attention" for layer in range(layers)]


def layer_types(values: Mapping[str, Any], key: str = "layer_types") -> list[str] | None:
    """Read the kinds of layers; None and absence mean None."""
    listed = values.get(key)
    if listed is not None and (not isinstance(listed, list) or not all(isinstance(kind, str) for kind in listed)):
        raise CheckpointError(f"config.json: {key} is {listed!r}; it must be a list of names.")
    return listed


def layers_of(kinds: Sequence[str], kind: str) -> tuple[int, ...]:
    """Return the layers of one kind, by their numbers."""
    return tuple(layer for layer, each in enumerate(kinds) if each == kind)


def layers_without_rope(values: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Read `no_rope_layers`, which has a 1 for a layer that turns, whatever the name says; without it, every layer but
    each `no_rope_layer_interval`-th does.
    """
    turns = values.get("no_rope_layers")
    if turns is None:
        interval = bounded(values, "no_rope_layer_interval")
        turns = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(turns, list) or len(turns) < layers:
        raise CheckpointError(f"config.json: no_rope_layers is {turns!r}; it must have a number for each layer.")
    return tuple(layer for layer in range(layers) if not turns[layer])


def windows(values: Mapping[str, Any], window: int | None, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the fields of ModelConfig for attention in a window.

    window: the family's, in tokens; None where it is switched off. kinds: of the layers, where `layer_types` is absent.

    Raises:
        CheckpointError: `layer_types` is not a list of names.
    """
    kinds = layer_types(values) or kinds
    if window is None or set(kinds) == {"full_attention"}:
        return {}
    if set(kinds) == {"sliding_attention"}:
        return {"sliding_window": window}
    return {"sliding_window": window, "layer_types": tuple(kinds)}


def windows_by_kind(values: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """Return the same for a family whose layers say by their kinds which of them attend in its `sliding_window`.

    Raises:
        CheckpointError: some do, and `sliding_window` is null.
    """
    window = optional_whole_number(values, "sliding_window")
    if window is None and "sliding_attention" in kinds:
        raise CheckpointError("config.json: layer_types has 'sliding_attention', and sliding_window is null.")
    return windows(values, window, kinds)


def rope(values: Mapping[str, Any], context_length: int, *, partial: float | None = None) -> dict[str, Any]:
    """Return the fields of ModelConfig for the rotation, and the context that it makes.

    They come from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`. context_length: stands in for
    an absent original_max_position_embeddings, as in transformers; a dynamic scaling multiplies it. partial: the
    family's own partial_rotary_factor; None where it turns whole heads.

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
    unknown = {key: value for key, value in settings.items() if key not in _KNOWN_ROPE_SETTINGS}
    part = number(settings, "partial_rotary_factor", number(values, "partial_rotary_factor", partial or 1.0))
    if rope_type == "proportional":
        settings, part = {"partial_rotary_factor": part, **settings}, 1.0
    if partial is None and part != 1.0:
        unknown["partial_rotary_factor"] = part
    for key, value in unknown.items():
        raise CheckpointError(f"config.json: the rope setting {key} = {value!r} is not supported; leave it out.")
    used: dict[str, Any] = {key: number(settings, key, 0.0) for key in _ROPE_SETTINGS[rope_type] if key in settings}
    if rope_type in _STRETCHED:
        inner = whole_number(settings, "original_max_position_embeddings", context_length)
        used["original_max_position_embeddings"] = whole_number(values, "original_max_position_embeddings", inner)
    if rope_type == "dynamic":
        used["original_max_position_embeddings"] = context_length
    if rope_type == "longrope":
        used |= {key: _numbers(settings, key) for key in ("short_factor", "long_factor")}
    if rope_type in ("yarn", "longrope"):  # without one, the context is so much longer
        original = max(used["original_max_position_embeddings"], 1)
        used.setdefault("factor", max(min(context_length, _LARGEST_CONTEXT) / original, 1.0))
    if rope_type == "yarn":
        used |= _yarn_settings(settings, used["factor"])
    scaling = RopeScaling(rope_type=rope_type, **used)
    return {
        "max_position_embeddings": int(context_length * scaling.factor) if rope_type == "dynamic" else context_length,
        "rope_theta": number(settings, "rope_theta", number(values, "rope_theta", 10000.0)),
        "rope_scaling": scaling,
        "partial_rotary_factor": part,
    }


def check_turns_alone(scaling: RopeScaling) -> None:
    """Check that a rotation that stands before a norm changes no length: yarn's and longrope's factor would be lost.

    Raises:
        CheckpointError: it does.
    """
    if scaling.rope_type in ("yarn", "longrope"):
        raise CheckpointError(
            f"config.json: rope type {scaling.rope_type!r} is not supported before a norm; supported: "
            "default, linear, dynamic, llama3."
        )


def _yarn_settings(settings: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Read what yarn alone has; two scales of the attention factor stand for their ratio (DeepSeek).

    attn_factor multiplies the factor that follows from the rest (DeepSeek-R1-0528-Qwen3-8B), as in vLLM and llama.cpp;
    transformers warns that it does not know it.
    """
    used: dict[str, Any] = {"truncate": flag(settings, "truncate", True)}
    scales = [number(settings, key, 0.0) for key in ("mscale", "mscale_all_dim")]
    if min(scales) < 0:
        raise CheckpointError(f"config.json: mscale and mscale_all_dim are {scales}; they must be 0 or more.")
    if "attention_factor" in settings or factor < 1:  # RopeScaling refuses the latter
        return used
    if all(scales):
        grown = [0.1 * scale * math.log(factor) + 1.0 for scale in scales]
        used["attention_factor"] = grown[0] / grown[1]
    if "attn_factor" in settings:
        usual = used.get("attention_factor", 0.1 * math.log(factor) + 1.0)
        used["attention_factor"] = usual * number(settings, "attn_factor", 1.0)
    return used


def _numbers(settings: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = settings.get(key)
    if not isinstance(value, list) or not all(map(is_finite, value)):
        raise CheckpointError(f"config.json: {key} is {value!r}; it must be a list of numbers.")
    return tuple(float(part) for part in value)

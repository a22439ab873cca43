"""Reading GGUF metadata: typed values, and features that we do not have refused by name."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgelm.arguments import is_number, is_whole
from edgelm.errors import CheckpointError
from edgelm.number_bounds import FLOAT32_END

if TYPE_CHECKING:
    from edgelm_export.architectures.architecture import GGUFHeader

WINDOW_PATTERN = "attention.sliding_window_pattern"
# Keys of a family's metadata, without its prefix, to what config.json calls them: a whole number that a file must have;
# with a value of the same type for files that lack it; or None, if it is read elsewhere or has no effect.
GGUFKeys = Mapping[str, str | tuple[str, bool | int | float] | None]
NO_KEYS: GGUFKeys = {}
WINDOW: GGUFKeys = {"attention.sliding_window": "sliding_window"}
_ROPE_TYPES = ("none", "linear", "yarn")
# llama.cpp's names of a sampler's settings, and Hugging Face's.
_SAMPLING = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
    "xtc_probability": "xtc_probability", "xtc_threshold": "xtc_threshold",
}  # fmt: skip


def whole_number(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Read a whole number; absence means the default, which None makes an error.

    llama.cpp writes some of them per layer; an array of equal numbers is that number.
    """
    value = metadata.get(key, default)
    if isinstance(value, array):
        value = value[0] if len(set(value)) == 1 else value.tolist()
    if not is_whole(value):
        shown = "missing" if value is None else f"{str(value)[:100]}"
        raise CheckpointError(f"GGUF metadata: {key} is {shown}; supported is one whole number for all layers.")
    return value


def float32_number(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Read a number that the file holds in float32, as the decimal it was written from (1e-05, not 9.99999974e-06)."""
    value = metadata.get(key, default)
    if not is_number(value) or not abs(value) < FLOAT32_END:
        shown = "missing" if value is None else f"{str(value)[:100]}"
        raise CheckpointError(f"GGUF metadata: {key} is {shown}; it must be a number that float32 holds.")
    return float(str(np.float32(value)))


def named_values(metadata: Mapping[str, Any], prefix: str, keys: GGUFKeys) -> dict[str, Any]:
    """Make config.json's values of those keys that it calls by a name."""
    values: dict[str, Any] = {}
    for key, named in keys.items():
        if named is None:
            continue
        key, (name, default) = f"{prefix}{key}", (named, None) if isinstance(named, str) else named
        if isinstance(default, bool):
            values[name] = metadata.get(key, default)
        elif isinstance(default, float):
            values[name] = float32_number(metadata, key, default)
        else:
            values[name] = whole_number(metadata, key, default)
    return values


def rope_by_kind(values: dict[str, Any], header: GGUFHeader) -> dict[str, Any]:
    """Return `values` with rope apart for layers that see all tokens and those with a window, which scale none."""
    values, theta = dict(values), values["rope_theta"]
    every = {"rope_theta": values.pop("rope_theta"), **(values.pop("rope_scaling") or {"rope_type": "default"})}
    local = float32_number(header.metadata, f"{header.architecture}.rope.freq_base_swa", theta)
    kinds = {"full_attention": every, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return {**values, "rope_parameters": kinds}


def window_kinds(header: GGUFHeader) -> list[str]:
    """Read which layers have a window, as config.json's layer_types.

    Raises:
        CheckpointError: the file does not say it of each layer.
    """
    key = f"{header.architecture}.{WINDOW_PATTERN}"
    listed, layers = header.metadata.get(key), whole_number(header.metadata, f"{header.architecture}.block_count")
    if not isinstance(listed, list) or len(listed) != layers or not all(isinstance(value, bool) for value in listed):
        raise CheckpointError(
            f"{key} is {str(listed)[:60]}; it must say of each of {str(layers)[:20]} layers whether it has a window."
        )
    return ["sliding_attention" if slides else "full_attention" for slides in listed]


def refuse_unknown_keys(metadata: Mapping[str, Any], prefix: str, known: frozenset[str]) -> None:
    """Refuse what the file says of its model beyond `known`; a zero or False turns a feature off.

    Raises:
        CheckpointError: lists every such key and its value.
    """
    unknown = [
        f"{key} = {str(value)[:100]}"
        for key, value in metadata.items()
        if key.startswith(prefix) and key not in known and (isinstance(value, (list, array)) or value)
    ]
    if unknown:
        raise CheckpointError(f"GGUF metadata asks for features that are not supported: {', '.join(unknown)}.")


def rope_scaling(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    """Make Hugging Face's rope_scaling of `<prefix>rope.scaling.*`; None where nothing is scaled.

    Raises:
        CheckpointError: the type is not supported.
    """
    # As llama.cpp takes it: files of 2023 have the other name, and no type.
    names = ("rope.scaling.factor", "rope.scale_linear")
    named = next((name for name in names if f"{prefix}{name}" in metadata), names[0])
    unnamed = "linear" if metadata.get(f"{prefix}{named}") else "none"
    rope_type = metadata.get(f"{prefix}rope.scaling.type", unnamed)
    if rope_type not in _ROPE_TYPES:
        raise CheckpointError(
            f"GGUF metadata: {prefix}rope.scaling.type {rope_type!r} is not supported; "
            f"supported: {', '.join(_ROPE_TYPES)}."
        )
    attention = float32_number(metadata, f"{prefix}rope.scaling.attn_factor", 1.0)
    if attention != 1 and rope_type != "yarn":
        raise CheckpointError(
            f"GGUF metadata: {prefix}rope.scaling.attn_factor is {attention}; with a rope.scaling.type of "
            f"{rope_type!r} supported is 1."
        )
    if rope_type == "none":
        return None
    settings = {"rope_type": rope_type, "factor": float32_number(metadata, f"{prefix}{named}")}
    if rope_type == "yarn":
        key = f"{prefix}rope.scaling.original_context_length"
        settings["original_max_position_embeddings"] = whole_number(metadata, key)
        settings |= {} if attention == 1 else {"attn_factor": attention}
        for beta in ("beta_fast", "beta_slow"):
            if (key := f"{prefix}rope.scaling.yarn_{beta}") in metadata:
                settings[beta] = float32_number(metadata, key)
    return settings


_NEVER = "tokenizer.ggml.suppress_tokens"  # of images and sound in Gemma 4's files


def sampling_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Make generation_config.json's values of how the author samples, which newer files say as llama.cpp reads it."""
    prefix = "general.sampling."
    said = {ours: f"{prefix}{key}" for key, ours in _SAMPLING.items() if f"{prefix}{key}" in metadata}
    values: dict[str, Any] = {ours: float32_number(metadata, key) for ours, key in said.items()}
    if "top_k" in values:
        values["top_k"] = max(whole_number(metadata, said["top_k"]), 0)  # from 0 down, all are taken
    if values.keys() - {"repetition_penalty"}:
        values["do_sample"] = values.get("temperature", 1.0) > 0
    never = metadata.get(_NEVER)
    if never is not None and not isinstance(never, array):
        raise CheckpointError(f"GGUF metadata: {_NEVER} is {str(never)[:100]}; it must be a list of token ids.")
    return values | ({"suppress_tokens": never.tolist()} if never else {})

"""Reading GGUF metadata: typed values, and features that we do not have refused by name."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgelm.errors import CheckpointError
from edgelm.number_bounds import FLOAT32_END

_ROPE_TYPES = ("none", "linear", "yarn")
# End of text, of a turn, and of a message that calls a tool: llama.cpp ends a generation at each.
_END_TOKENS = ("eos", "eot", "eom")


def whole_number(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Read a whole number; absence means the default, which None makes an error.

    llama.cpp writes some of them per layer; an array of equal numbers is that number.
    """
    value = metadata.get(key, default)
    if isinstance(value, array):
        value = value[0] if len(set(value)) == 1 else value.tolist()
    if not isinstance(value, int) or isinstance(value, bool):
        shown = "missing" if value is None else f"{str(value)[:100]}"
        raise CheckpointError(f"GGUF metadata: {key} is {shown}; supported is one whole number for all layers.")
    return value


def float32_number(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """Read a number that the file holds in float32, as the decimal it was written from (1e-05, not 9.99999974e-06)."""
    value = metadata.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < FLOAT32_END:
        shown = "missing" if value is None else f"{str(value)[:100]}"
        raise CheckpointError(f"GGUF metadata: {key} is {shown}; it must be a number.")
    return float(str(np.float32(value)))


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
    unnamed = "linear" if metadata.get(f"{prefix}rope.scaling.factor") else "none"  # as llama.cpp takes it
    rope_type = metadata.get(f"{prefix}rope.scaling.type", unnamed)
    if rope_type not in _ROPE_TYPES:
        raise CheckpointError(
            f"GGUF metadata: {prefix}rope.scaling.type {rope_type!r} is not supported; "
            f"supported: {', '.join(_ROPE_TYPES)}."
        )
    if rope_type == "none":
        return None
    settings = {"rope_type": rope_type, "factor": float32_number(metadata, f"{prefix}rope.scaling.factor")}
    if rope_type == "yarn":
        key = f"{prefix}rope.scaling.original_context_length"
        settings["original_max_position_embeddings"] = whole_number(metadata, key)
    return settings


def token_id_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Make the token ids of the tokenizer's metadata; ends are a list where a turn has one of its own."""
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS]
    ends = list(dict.fromkeys(id_ for id_ in ends if id_ is not None))
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }

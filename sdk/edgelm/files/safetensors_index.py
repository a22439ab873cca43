"""The index of a checkpoint in several safetensors files: which of them each tensor lies in."""

from __future__ import annotations

import json
from pathlib import Path

from edgelm.files.regular_file import check_json_values, read_text

# The packed experts of the largest models are 144,384 tensors, four for each matrix; the line of one has 95 bytes.
MAX_INDEX_BYTES = 14 << 20
MAX_INDEX_VALUES = 150_000


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the file of each tensor from a `model.safetensors.index.json`; whether these exist is not looked at.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, is no JSON in ASCII, or has no such map.
    """
    text = read_text(path, MAX_INDEX_BYTES, encoding="ascii")  # one letter beyond can make four bytes of each
    check_json_values(text, MAX_INDEX_VALUES)
    try:
        values = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"its nesting is too deep ({error})") from error
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not set(map(type, weight_map.values())) <= {str}:
        raise ValueError("it has no weight_map of tensor names to file names")
    return weight_map

"""The weights of a checkpoint folder: one safetensors file, or several and an index of which tensor lies in which."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from edgelm.files.regular_file import bounded_json, read_text

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# The packed experts of a model of 30 billion weights are 73,728 tensors, four for each matrix; the line of one has 95
# bytes.
MAX_INDEX_BYTES = 15 << 19
MAX_INDEX_VALUES = 78_000

_MOST_NAMES = 5


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the file of each tensor from an index; whether these exist is not looked at.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, is no JSON in ASCII, or has no such map.
    """
    text = read_text(path, MAX_INDEX_BYTES, encoding="ascii")  # one letter beyond can make four bytes of each
    values = bounded_json(text, MAX_INDEX_VALUES)
    weight_map = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(weight_map, dict) or not set(map(type, weight_map.values())) <= {str}:
        raise ValueError("it has no weight_map of tensor names to file names")
    return weight_map


def missing_files(path: Path, names: Iterable[str]) -> str | None:
    """Say which of the files that an index at `path` lists are not beside it; None: all are there."""
    listed = sorted(names)
    missing = [f"{name:.100}" for name in listed if not os.path.isfile(path.parent / name)]  # Path's own may raise
    if not missing:
        return None
    rest = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
    return (
        f"{path.parent} lacks {len(missing)} of the {len(listed)} files that {path.name} lists: "
        f"{', '.join(missing[:_MOST_NAMES])}{rest}"
    )

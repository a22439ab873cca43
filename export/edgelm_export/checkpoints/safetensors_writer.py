"""Writing a safetensors file tensor by tensor, so that only one, or a portion of it, is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# The entry of the file's metadata that holds, as JSON, what the weights were imported from.
SOURCE_KEY = "edgelm_source"

_ITEM_SIZES = {"F32": 4, "F16": 2, "BF16": 2}
_PORTION_VALUES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """The type (F32, F16 or BF16) and shape that a tensor has in the file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * _ITEM_SIZES[self.dtype]


def write_safetensors(
    path: Path,
    tensors: Mapping[str, TensorSpec],
    read: Callable[[str], Iterable[NDArray[np.float32]]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file; `read` is called once for each tensor, in the file's order, and returns its
    portions, one behind the other.

    Values of a tensor of a 16-bit type are those of that type, or rounded to the nearest.
    Source: the format's description in the safetensors project (8 bytes of length, a JSON header, the data).

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    # Wider types first, as the library writes them: then every tensor begins at a multiple of its item size.
    names = sorted(tensors, key=lambda name: -_ITEM_SIZES[tensors[name].dtype])
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name in names:
        spec = tensors[name]
        end = offset + spec.nbytes
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for portion in read(name):
                _write_values(file, portion, tensors[name].dtype)


def _write_values(file: IO[bytes], values: NDArray[np.float32], dtype: str) -> None:
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "F32":
        file.write(flat.astype("<f4", copy=False).data)
        return
    for start in range(0, flat.size, _PORTION_VALUES):
        portion = flat[start : start + _PORTION_VALUES]
        narrowed = portion.astype(np.float16 if dtype == "F16" else ml_dtypes.bfloat16)
        file.write(narrowed.view(np.uint16).astype("<u2", copy=False).data)

"""Reading a small safetensors file of float32 matrices, within bounds, without the library.

Source: the format's description in the safetensors project (8 bytes of length, a JSON header, the data).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import PackageError
from edgelm.files.regular_file import parse_json
from edgelm.files.safetensors_header import MAX_HEADER_BYTES


def parse_matrices(content: bytes, path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the matrices of a file, float32 views on `content`; `path` is what errors name.

    Raises:
        PackageError: the file is cut off or damaged, or has something else in it than finite float32 matrices.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise _broken(path, f"its header of {length} bytes is not there")
    try:
        header = parse_json(content[8 : 8 + length])
        header.pop("__metadata__", None)
        data = memoryview(content)[8 + length :]
        matrices = {name: _matrix(data, **entry) for name, entry in header.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise _broken(path, str(error)) from error
    for name, matrix in matrices.items():
        if not np.isfinite(matrix).all():
            raise _broken(path, f"{name[:200]} has NaN or infinite values")
    return matrices


def _matrix(data: memoryview, *, dtype: Any, shape: Any, data_offsets: Any) -> NDArray[np.float32]:
    numbers = [*shape, *data_offsets]
    if dtype != "F32" or len(shape) != 2 or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a tensor is {dtype!r:.40} of shape {shape!r:.80}; only F32 matrices are read")
    start, end = data_offsets
    if end > len(data) or end - start != 4 * math.prod(shape):
        raise ValueError(f"a matrix of shape {shape} lies at {start} to {end} of {len(data)} bytes")
    return np.frombuffer(data[start:end], "<f4").reshape(shape)


def _broken(path: Path, problem: str) -> PackageError:
    return PackageError(f"{path} is no file of matrices: {problem}. Export or copy it again.")

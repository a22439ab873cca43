"""MappedTable: a table in a file, of which rows are looked up, and whose memory can be given back at any time."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class MappedTable:
    """A table as it lies in a file from `offset` on, mapped to be read.

    Looking up a row brings the 64 kB around it into memory, and packing a tied head all of it. A mapping that ONNX
    Runtime made could not be given back while it loads: it may unmap it, and another thread map memory at that place.

    Raises:
        OSError, ValueError: the file cannot be mapped, or ends before the table does.
    """

    def __init__(self, path: Path, offset: int, dtype: DTypeLike, shape: Sequence[int]) -> None:
        count = math.prod(shape)
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        size = offset - start + count * np.dtype(dtype).itemsize
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ, offset=start)
        self.array: NDArray[Any] = np.frombuffer(self._memory, dtype, count, offset - start).reshape(shape)

    def give_back(self) -> None:
        """Give its memory back; what is read again comes from the file, mostly from the system's cache."""
        if sys.platform == "linux":  # elsewhere this advice leaves the pages where they are, or is none
            self._memory.madvise(mmap.MADV_DONTNEED)

"""What the system says of this process's pages: /proc/self/pagemap, on Linux.

Source: Documentation/admin-guide/mm/pagemap.rst of Linux.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Pages = NDArray[np.bool_]

_PAGEMAP = Path("/proc/self/pagemap")
_ENTRY = np.dtype(np.uint64)  # of a page
_PRESENT, _SWAPPED, _OF_A_FILE = (_ENTRY.type(1 << bit) for bit in (63, 62, 61))


class Pagemap:
    """The pages of this process; as a context, it is closed behind it.

    Raises:
        OSError: the system has no such file, or does not let it be read.
    """

    def __init__(self) -> None:
        self._file: BinaryIO = _PAGEMAP.open("rb", buffering=0)

    def __enter__(self) -> Pagemap:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def own(self, start: int, end: int) -> Pages:
        """Tell which pages between two addresses hold something of this process's own, not what a file has."""
        self._file.seek(start // mmap.PAGESIZE * _ENTRY.itemsize)
        flags_P = np.frombuffer(self._file.read((end - start) // mmap.PAGESIZE * _ENTRY.itemsize), _ENTRY)
        return np.asarray((flags_P & (_PRESENT | _SWAPPED) != 0) & (flags_P & _OF_A_FILE == 0))

"""Memory that an array gives back: its addresses stay, and read zeros until they are written again."""

from __future__ import annotations

import mmap
import sys
from typing import Any

from numpy.typing import NDArray

from edgelm.memory.c_library import c_library

# Elsewhere the same advice leaves the pages where they are (macOS), or there is none (Windows).
CAN_RETURN = sys.platform == "linux"
_MADV_DONTNEED, _MADV_REMOVE = 4, 9  # madvise(2): for memory of this process alone, and for memory mapped twice


def give_back(array: NDArray[Any]) -> None:
    """Give the whole pages of a contiguous array back to the system. What it holds is lost, where `CAN_RETURN`."""
    if sys.is_finalizing():  # all goes back, and ctypes can be imported no more
        return
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if size <= 0 or not CAN_RETURN:
        return
    madvise = c_library().madvise
    if madvise(start, size, _MADV_REMOVE):
        madvise(start, size, _MADV_DONTNEED)  # what is refused (locked memory) stays as it is

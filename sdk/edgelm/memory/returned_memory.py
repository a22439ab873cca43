"""Memory that an array gives back: its addresses stay, and read zeros until they are written again."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

from numpy.typing import NDArray

# Elsewhere the same advice leaves the pages where they are (macOS), or there is none (Windows).
CAN_RETURN = sys.platform.startswith("linux")
_MADV_DONTNEED, _MADV_REMOVE = 4, 9  # madvise(2): for memory of this process alone, and for memory mapped twice


def give_back(array: NDArray[Any]) -> None:
    """Give the whole pages of a contiguous array back to the system. What it holds is lost, where `CAN_RETURN`."""
    if sys.is_finalizing():  # all goes back, and ctypes can be imported no more
        return
    start = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if size <= 0 or not CAN_RETURN:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(start, size, _MADV_REMOVE):
        madvise(start, size, _MADV_DONTNEED)  # what is refused (locked memory) stays as it is

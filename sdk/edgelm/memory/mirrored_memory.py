"""Mirrored memory: one array that appears several times in a row, so that what is written into one is in all."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MAP_FIXED = 0x10  # Linux, on every processor that onnxruntime has a wheel for


def mirrored_zeros(shape: tuple[int, ...], times: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return zeros [times, *shape], every row of which is the same memory.

    Raises:
        OSError: the system has no such memory (only Linux has it here), or a row is not whole pages.
    """
    row_bytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    if not hasattr(os, "memfd_create"):
        raise OSError("Mirrored memory needs memfd_create, which Linux has.")
    if row_bytes == 0 or row_bytes % mmap.PAGESIZE:
        raise OSError(f"{row_bytes} bytes are not whole pages of {mmap.PAGESIZE}.")
    return np.asarray(_Mirrors(shape, row_bytes, times, np.dtype(dtype).str))


class _Mirrors:
    """The mappings; numpy reads where they are, and keeps this object for as long as an array looks at them."""

    def __init__(self, shape: tuple[int, ...], row_bytes: int, times: int, typestr: str) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        library.mmap.restype = ctypes.c_void_p
        library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        memory = os.memfd_create("edgelm")
        try:
            os.ftruncate(memory, row_bytes)
            # The addresses first, as one piece; each row of them then becomes the memory.
            start = _checked(library.mmap(None, times * row_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0))
            weakref.finalize(self, library.munmap, start, times * row_bytes)
            for row in range(times):
                access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED
                _checked(library.mmap(start + row * row_bytes, row_bytes, access, flags, memory, 0))
        finally:
            os.close(memory)
        self.__array_interface__: dict[str, Any] = {
            "shape": (times, *shape),
            "typestr": typestr,
            "data": (start, False),
            "version": 3,
        }


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"Cannot map memory: {os.strerror(ctypes.get_errno())}.")
    return address

"""Mirrored memory: rows of arrays that appear in several places, so that what is written into one place is in all."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgelm.memory.c_library import c_library

# Linux's, on every processor that onnxruntime has a wheel for.
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 1, 2, 0x10, 0x20


class Row(NamedTuple):
    """The shape and type of a row of one buffer."""

    shape: tuple[int, ...]
    dtype: DTypeLike

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class MirroredBuffers:
    """Buffers of zeros [R, *shape], each with P places besides, one after the other, which show any of its rows.

    `rows` describes a row of each buffer. `buffers` and what `show` returns keep the memory for as long as they are
    held.

    Raises:
        OSError: the system has no such memory (only Linux has it here), or a row is not whole pages.
    """

    def __init__(self, rows: Sequence[Row], count: int, places: int) -> None:
        for row in rows:
            if row.bytes == 0 or row.bytes % mmap.PAGESIZE:
                raise OSError(f"{row.bytes} bytes are not whole pages of {mmap.PAGESIZE}.")
        self._rows, self._count = rows, count
        of_all = sum(row.bytes for row in rows)
        self._memory = _Memory(count * of_all, (count + places) * of_all)
        self._shown: list[int | None] = [None] * places
        self._offsets: list[int] = []  # of each buffer's rows, in memory ...
        self._addresses: list[int] = []  # ... and where they and the places behind them are shown
        offset = address = 0
        for row in rows:
            self._offsets.append(offset)
            self._addresses.append(address)
            self._memory.show(offset, address, count * row.bytes)
            offset += count * row.bytes
            address += (count + places) * row.bytes
        self.buffers = [self._array(i, 0, count) for i in range(len(rows))]

    def show(self, order: Sequence[int]) -> list[NDArray[Any]]:
        """Return the first places of each buffer, [len(order), *shape], when they show these rows."""
        for place, shown in enumerate(order):
            if self._shown[place] != shown:
                for i, row in enumerate(self._rows):
                    address = self._addresses[i] + (self._count + place) * row.bytes
                    self._memory.show(self._offsets[i] + shown * row.bytes, address, row.bytes)
                self._shown[place] = shown
        return [self._array(i, self._count, len(order)) for i in range(len(self._rows))]

    def _array(self, i: int, first: int, count: int) -> NDArray[Any]:
        row = self._rows[i]
        start = self._addresses[i] + first * row.bytes
        return self._memory.array(start, (count, *row.shape), row.dtype)


class _Memory:
    """Memory of a number of bytes without addresses, and a range of addresses, parts of which show parts of it."""

    def __init__(self, size: int, addresses: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise OSError("Mirrored memory needs memfd_create, which Linux has.")
        self._file = os.memfd_create("edgelm")
        # Not at the program's end: a thread may compute in it until its engine or session, which are older, are ended.
        weakref.finalize(self, os.close, self._file).atexit = False
        os.ftruncate(self._file, size)
        private = _MAP_PRIVATE | _MAP_ANONYMOUS
        self._start = _checked(c_library().mmap(None, addresses, _PROT_NONE, private, -1, 0))
        weakref.finalize(self, c_library().munmap, self._start, addresses).atexit = False

    def show(self, offset: int, address: int, size: int) -> None:
        """Show `size` bytes of the memory from `offset` on at `address`, counted from the first."""
        access, flags = _PROT_READ | _PROT_WRITE, _MAP_SHARED | _MAP_FIXED
        _checked(c_library().mmap(self._start + address, size, access, flags, self._file, offset))

    def array(self, address: int, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what is shown from `address` on as an array, which holds this object."""
        return np.asarray(_Shown(self, self._start + address, shape, np.dtype(dtype).str))


class _Shown:
    """A part of memory as numpy reads it; numpy keeps this for as long as an array looks at it."""

    def __init__(self, memory: _Memory, start: int, shape: tuple[int, ...], typestr: str) -> None:
        self._memory = memory
        self.__array_interface__: dict[str, Any] = {
            "shape": shape,
            "typestr": typestr,
            "data": (start, False),
            "version": 3,
        }


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"Cannot map memory: {os.strerror(ctypes.get_errno())}.")
    return address

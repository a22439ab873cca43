"""Large memory on huge pages: each step reads all weights, keys and values, and finds them with 512 times fewer page
table entries.

Decoding is faster for it, by little or by up to 15 % (docs/results/graph-and-settings.md, with pages of 2 MiB). Linux
6.1 and newer; elsewhere, and where the system forbids huge pages, nothing happens.
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import re
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgelm.memory.c_library import c_library
from edgelm.memory.malloc import return_freed_memory
from edgelm.memory.pagemap import Pagemap

_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
# Huge pages in the smallest mapping that is moved. With pages of 2 MiB a smaller one holds no weights, and no long
# text's keys and values; with larger ones, it would take more memory for its last page than it holds.
_FEWEST = 2
_FILLED = 0.5
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # madvise(2)
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\[heap\])?$", re.MULTILINE)


@functools.cache
def page_bytes() -> int | None:
    """Return the bytes of a huge page: 2 MiB, on Arm64 with pages of 16 or 64 KiB 32 or 512 MiB; None: there are none.

    Source: Documentation/admin-guide/mm/transhuge.rst of Linux.
    """
    try:
        return int(_SIZE.read_text(encoding="ascii"))
    except OSError:
        return None


def zeros(count: int, shape: tuple[int, ...], dtype: DTypeLike) -> list[NDArray[Any]]:
    """Return `count` arrays of zeros: in one mapping that asks for huge pages, where they are large and Linux has them.

    There, a page that was never written takes no memory either, but is larger (`page_bytes`). The memory goes when all
    arrays are gone; `give_back` empties one of them before.

    Raises:
        MemoryError: there is no room for them.
    """
    array_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    page = page_bytes()
    if page is None or count * array_bytes < _FEWEST * page or sys.platform != "linux":
        return [np.zeros(shape, dtype) for _ in range(count)]
    try:
        memory = mmap.mmap(-1, count * array_bytes + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"Cannot map {count * array_bytes} bytes: {error}.") from error
    with contextlib.suppress(OSError):  # forbidden for this process
        memory.madvise(mmap.MADV_HUGEPAGE)
    bytes_N = np.frombuffer(memory, np.uint8)
    first = -bytes_N.ctypes.data % page
    arrays = bytes_N[first : first + count * array_bytes].view(dtype).reshape(count, *shape)
    return list(arrays)


@contextlib.contextmanager
def in_huge_pages() -> Iterator[None]:
    """Give back the memory that the block frees, and move what it loads to huge pages."""
    mappings = large_mappings()
    yield  # after a failure there is nothing to move
    return_freed_memory()
    move_new_mappings(mappings)


def large_mappings() -> set[tuple[int, int]]:
    """Return where this process's large anonymous mappings begin and end; empty where the system has no huge pages."""
    page = page_bytes()
    if page is None:
        return set()
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = {(int(match[1], 16), int(match[2], 16)) for match in _MAPPING.finditer(maps)}
    return {(start, end) for start, end in found if end - start >= _FEWEST * page}


def move_new_mappings(before: Collection[tuple[int, int]]) -> threading.Thread | None:
    """Move the large mappings that are not among those `before` to huge pages, in a thread of their own.

    Returns the thread, which no program has to wait for; None where nothing is to do, or the system lets none start.
    What the kernel refuses stays.
    """
    page = page_bytes()
    new = large_mappings().difference(before)
    if page is None or not new:
        return None
    thread = threading.Thread(target=_move, args=(new, page), name="edgelm-huge-pages", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads: slower, but it works
        return None
    return thread


def _move(mappings: Collection[tuple[int, int]], page_bytes: int) -> None:
    madvise = c_library().madvise
    for start, end in mappings:
        first, last = -(-start // page_bytes) * page_bytes, end // page_bytes * page_bytes
        if madvise(first, last - first, _MADV_HUGEPAGE):
            continue  # freed since, or no huge pages in this process
        # One call over all of them stops at the first that is refused. Each releases the interpreter.
        for page in _filled(range(first, last, page_bytes)):
            madvise(page, page_bytes, _MADV_COLLAPSE)


def _filled(huge_pages: range) -> Iterator[int]:
    """Yield the addresses of the huge pages of which half is in use: a call would fill the rest with zeros.

    What was freed and given back leaves holes: 120 MB behind 135M weights of 5 bits.
    """
    try:
        with Pagemap() as pages:
            for page in huge_pages:
                if pages.own(page, page + huge_pages.step).mean() >= _FILLED:
                    yield page
    except OSError:  # a system that does not tell
        yield from huge_pages

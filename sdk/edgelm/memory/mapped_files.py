"""Mapped files: the memory of what a load read of them once, and a step reads little of.

ONNX Runtime maps the weights' file. It reads all of it to pack the products' weights, and keeps in sight what it did
not copy: of the embedding, a token reads one row.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

_MAPPINGS, _MAPPINGS_IN_DETAIL = Path("/proc/self/maps"), Path("/proc/self/smaps")
_FILE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
_FILE_IN_DETAIL = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)\n(?:[A-Z].*\n)*?Anonymous: +(\d+) kB", re.MULTILINE
)
_SMALLEST = 1 << 20  # bytes in all: the details take up to 60 ms in a process with many libraries
_MADV_DONTNEED = 4  # madvise(2)


def give_back_mapped_files(folder: Path) -> None:
    """Give the memory of the files of a folder that this process maps back to the system, where it only read them.

    What is read again comes from the file again, mostly from the system's cache. Linux; nothing happens elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    wanted = os.path.realpath(folder)
    try:
        found = _FILE.finditer(_MAPPINGS.read_text(encoding="utf-8", errors="replace"))
        sizes = [int(match[2], 16) - int(match[1], 16) for match in found if os.path.dirname(match[3]) == wanted]
        if sum(sizes) < _SMALLEST:
            return
        details = _MAPPINGS_IN_DETAIL.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for match in _FILE_IN_DETAIL.finditer(details):
        start, end, written = int(match[1], 16), int(match[2], 16), int(match[4])
        if not written and os.path.dirname(match[3]) == wanted:
            madvise(start, end - start, _MADV_DONTNEED)

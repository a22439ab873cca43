"""Mapped files: the memory of what was read of them once, and is hardly read again.

ONNX Runtime maps the weights' file. It reads all of it to pack the products' weights, and keeps in sight what it did
not copy: of the embedding, a token reads one row, and the system brings the 64 kB around it.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from edgelm.memory.c_library import c_library
from edgelm.memory.pagemap import Pagemap

_MAPPINGS = Path("/proc/self/maps")
_FILE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ +(/.*)$")
_SMALLEST = 1 << 20  # bytes: a mapping below it holds scales
_MADV_DONTNEED = 4  # madvise(2)


def give_back_mapped_files(folder: Path) -> None:
    """Give the memory of the files of a folder that this process maps back to the system, where it only read them.

    What is read again comes from the file again, mostly from the system's cache. Takes a millisecond, and nothing where
    no file is that large. Linux; nothing happens elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return
    wanted = os.path.realpath(folder)
    madvise = c_library().madvise
    try:
        with os.scandir(wanted) as entries:
            if all(entry.stat(follow_symlinks=False).st_size < _SMALLEST for entry in entries):
                return
        lines = _MAPPINGS.read_text(encoding="utf-8", errors="replace").split("\n")
        mappings = [line for line in lines if wanted in line]  # of hundreds, one or two
        with Pagemap() as pages:
            for match in filter(None, map(_FILE.match, mappings)):
                start, end = int(match[1], 16), int(match[2], 16)
                if end - start < _SMALLEST or os.path.dirname(match[3]) != wanted:
                    continue
                if not pages.own(start, end).any():
                    madvise(start, end - start, _MADV_DONTNEED)
    except OSError:  # a system without these files
        return

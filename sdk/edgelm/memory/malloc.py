"""The C library's allocator, where it can be told what to do."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Give memory that was freed back to the system: malloc_trim(3), on Linux with glibc; elsewhere nothing.

    Loading a model frees what its tokenizer was parsed from, and the allocator would keep it: 17 MB of 290.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""Memory of this process on 2 MiB pages, or kept off them (Linux)."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

HUGE_PAGE = 2 << 20
# A mapping below this is no weight and no KV cache.
_SMALLEST_MAPPING = 4 << 20
_PR_SET_THP_DISABLE = 41
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (rw-p) \S+ \S+ 0\s*(\[heap\])?\n")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def forbid() -> None:
    """Keep this process off huge pages, also where the system or numpy would use them by themselves."""
    if _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_THP_DISABLE) failed")


def collapse() -> None:
    """Move all large anonymous memory to huge pages now (MADV_COLLAPSE, Linux 6.1); what the kernel refuses stays."""
    for mapping in _MAPPING.finditer(Path("/proc/self/maps").read_text(encoding="ascii", errors="replace")):
        start, end = int(mapping[1], 16), int(mapping[2], 16)
        if end - start < _SMALLEST_MAPPING:
            continue
        start, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
        _libc.madvise(start, end - start, _MADV_HUGEPAGE)
        for page in range(start, end, HUGE_PAGE):  # one call over all of them stops at the first that is refused
            _libc.madvise(page, HUGE_PAGE, _MADV_COLLAPSE)


def bytes_on_huge_pages() -> int:
    """Count this process's anonymous bytes on huge pages."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^AnonHugePages:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) << 10 if found else 0

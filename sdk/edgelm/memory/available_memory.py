"""What the system says of its memory, what it lets this process have of it, and what that had."""

from __future__ import annotations

import contextlib
import mmap
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgelm.files.control_groups import own_groups

if sys.platform != "win32":
    import resource  # not in a function: an answer that is freed as the program ends can import nothing

_MEMORY_INFO = Path("/proc/meminfo")
_OWN_PAGES = Path("/proc/self/statm")
_NO_LIMIT = 1 << 60  # as v1 writes it: 2 ** 63, in whole pages
# By the version of control groups: the files of a group that have its limit, and what it uses; and what stands in
# memory.stat before what it has together with those inside of it. Source: the Linux kernel's cgroup v1 and v2.
_FILES: Mapping[int, tuple[str, str, str]] = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


def available_memory(*, with_swap: bool = False) -> int | None:
    """Return the bytes that this process can still take, without swapping or with it; None where nobody says (not
    Linux).
    """
    try:
        found = re.findall(r"^(MemAvailable|SwapFree):\s+(\d+) kB$", _MEMORY_INFO.read_text("ascii"), re.MULTILINE)
    except OSError:
        return None
    told = {name: int(kilobytes) << 10 for name, kilobytes in found}
    if "MemAvailable" not in told:
        return None
    free = told["MemAvailable"] + (told.get("SwapFree", 0) if with_swap else 0)
    left = memory_within_limits()
    return free if left is None else min(free, left)


def memory_within_limits() -> int | None:
    """Return how many bytes the limits of this process leave it: those of its control groups, as of a container, and of
    its address space (`ulimit -v`). None without any.
    """
    return min((max(0, limit - used) for limit, used in _limits()), default=None)


def memory_limit() -> int | None:
    """Return the least of those limits, whatever is taken of it by now; None without any."""
    return min((limit for limit, _ in _limits()), default=None)


def _limits() -> Iterator[tuple[int, int]]:
    """Yield limits, and what is used of each; memory of a control group that holds files is given back."""
    for folder, version in own_groups("memory"):
        limit_file, used_file, prefix = _FILES[version]
        with contextlib.suppress(OSError, ValueError):  # there is no such group here, or its limit is "max"
            limit = int((folder / limit_file).read_text("ascii"))
            if limit < _NO_LIMIT:
                used, stat = int((folder / used_file).read_text("ascii")), (folder / "memory.stat").read_text("ascii")
                cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE)
                yield limit, used - sum(map(int, cached))
    yield from _limit_of_address_space()


def _limit_of_address_space() -> list[tuple[int, int]]:
    if sys.platform != "win32":  # which has no such limit
        with contextlib.suppress(OSError):
            limit, _ = resource.getrlimit(resource.RLIMIT_AS)
            if limit != resource.RLIM_INFINITY:
                return [(limit, int(_OWN_PAGES.read_text("ascii").split()[0]) * mmap.PAGESIZE)]
    return []


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process ever had, None on Windows."""
    if sys.platform != "win32":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes
    return None

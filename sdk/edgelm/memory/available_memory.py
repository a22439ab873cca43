"""What the system says of its memory, what it lets this process have of it, and what that had."""

from __future__ import annotations

import contextlib
import mmap
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_MEMORY_INFO = Path("/proc/meminfo")
_OWN_PAGES = Path("/proc/self/statm")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


class _GroupFiles(NamedTuple):
    """Where the memory of control groups is bounded: below which folder, and in which files of a group's own."""

    folder: str
    limit: str
    used: str
    prefix: str  # in memory.stat, of what a group has together with those inside of it


_NO_LIMIT = 1 << 60  # as v1 writes it: 2 ** 63, in whole pages
# By what a line of /proc/self/cgroup names beside a group. Source: the Linux kernel's cgroup v2 and v1.
_KINDS: Mapping[str, _GroupFiles] = {
    "": _GroupFiles("", "memory.max", "memory.current", ""),
    "memory": _GroupFiles("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def available_memory(*, with_swap: bool = False) -> int | None:
    """Return the bytes that this process can still take, without swapping or with it; None where nobody says (not
    Linux).
    """
    try:
        found = re.findall(r"^(MemAvailable|SwapFree):\s+(\d+) kB$", _MEMORY_INFO.read_text(), re.MULTILINE)
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
    """Yield limits, and what is used of each."""
    yield from _limits_of_groups()
    yield from _limit_of_address_space()


def _limits_of_groups() -> Iterator[tuple[int, int]]:
    """Yield those of this process's groups, and of those around them; memory that holds files is given back."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in _KINDS:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):  # a container may see its own group alone, as the outermost
            with contextlib.suppress(OSError, ValueError):  # there is no such group here, or its limit is "max"
                yield from _limit_of_group(_KINDS[controllers], group)


def _limit_of_group(kind: _GroupFiles, group: PurePosixPath) -> Iterator[tuple[int, int]]:
    folder = _GROUPS / kind.folder / group
    limit = int((folder / kind.limit).read_text())
    if limit < _NO_LIMIT:
        stat = (folder / "memory.stat").read_text()
        cached = re.findall(rf"^{kind.prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE)
        yield limit, int((folder / kind.used).read_text()) - sum(map(int, cached))


def _limit_of_address_space() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(ImportError, OSError):  # Windows has no such limit
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield limit, int(_OWN_PAGES.read_text().split()[0]) * mmap.PAGESIZE


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process ever had, None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes

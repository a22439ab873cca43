"""What the processor offers to this process."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from edgelm.files.control_groups import own_groups
from edgelm.runtime.cores import physical_cores

MOST_THREADS = 1024  # of a step that anybody may ask for
_CPU_INFO = Path("/proc/cpuinfo")
# Instruction sets that sum products of 8 bits up in 32 bits: VNNI, and Arm's dot products.
INTEGER_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "i8mm"})


def usable_cores(process: int = 0) -> int:
    """Count the physical cores that a process gets: those it may run on, within this container's share of time.

    process: its id; 0 is this one.
    """
    quota = cpu_quota()
    cores = physical_cores(process)
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota() -> float | None:
    """Return how many processors' time this process's control groups get, None without such a limit.

    A container that may use two of 16 processors sees all 16; 16 threads there wait for each other most of the time.
    Source: the Linux kernel's cgroup v2 `cpu.max` and v1 `cpu.cfs_quota_us`.
    """
    return min(
        (quota for folder, version in own_groups("cpu") for quota in _quota_of_group(folder, version)), default=None
    )


def _quota_of_group(folder: Path, version: int) -> Iterator[float]:
    with contextlib.suppress(OSError, ValueError):  # there is no such group here, or its quota is "max"
        if version == 2:
            quota, period = map(int, (folder / "cpu.max").read_text("ascii").split())
        else:
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text("ascii")) for name in ("quota", "period"))
        if quota > 0:  # -1 is none
            yield quota / period


def cpu_features() -> frozenset[str] | None:
    """Return the names of the processor's instruction sets, as Linux writes them; None where nobody says."""
    try:
        match = re.search(r"^(?:flags|Features)\s*: (.*)$", _CPU_INFO.read_text("latin-1"), re.MULTILINE)
    except OSError:
        return None
    return frozenset(match[1].split()) if match else None

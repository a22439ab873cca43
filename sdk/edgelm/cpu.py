"""What the processor offers."""

from __future__ import annotations

import os
from pathlib import Path


def physical_cores() -> int:
    """Count the physical cores that this process may use.

    Two threads on one core share its vector units: for matrix products the second brings nothing. Where the system does
    not say which logical processors share a core (not Linux), all that are allowed count.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = set()
    for processor in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
        try:
            cores.add(topology.read_text())
        except OSError:
            return len(allowed)
    return len(cores)

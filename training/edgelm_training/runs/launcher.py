"""What torchrun, or another launcher with its variables, tells each process that it starts; needs no torch."""

from __future__ import annotations

import os


def launched_place() -> tuple[int, int, int]:
    """Return this process's rank, the number of processes, and its rank among those of this machine."""
    rank, world_size, local_rank = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    return rank, world_size, local_rank


def launched_here() -> int:
    """Return how many processes torchrun has started on this machine; other launchers do not say: one."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched_restarts() -> int:
    """Return how often torchrun has started the processes again after it lost one."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))

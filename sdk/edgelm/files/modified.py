"""When a file was written, within the years that a date can have; and whether another is in its place."""

from __future__ import annotations

import os
from pathlib import Path

# A day before the year 3000, behind which Windows knows no local time.
_LAST = 32_503_593_600.0


def modified(status: os.stat_result) -> float:
    """Return when a file was written, in seconds since 1970.

    Archives and damaged disks give a file any time: one before 1970, or behind the year 2999, counts as that limit.
    """
    return min(max(status.st_mtime, 0.0), _LAST)


def state_of_file(path: Path) -> tuple[int, int] | None:
    """Return what differs for another file in its place: its time of writing in ns, and its bytes; None: it is gone.

    Not the inode number, which some file systems make up.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size

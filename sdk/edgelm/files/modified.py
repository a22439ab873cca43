"""When a file was written, within the years that a date can have."""

from __future__ import annotations

import os

# A day before the year 3000, behind which Windows knows no local time.
_LAST = 32_503_593_600.0


def modified(status: os.stat_result) -> float:
    """Return when a file was written, in seconds since 1970.

    Archives and damaged disks give a file any time: one before 1970, or behind the year 2999, counts as that limit.
    """
    return min(max(status.st_mtime, 0.0), _LAST)

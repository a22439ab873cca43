"""What the system says of its memory."""

from __future__ import annotations

import re
from pathlib import Path

_MEMORY_INFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Return the bytes that programs can still take without swapping, None where nobody says (not Linux)."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMORY_INFO.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) << 10 if match else None

"""Whether a disk has room, asked before the first byte is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgelm.errors import DownloadError

# Left free beside what is written: a disk filled to the last byte breaks other programs.
_SPARE_BYTES = 64 << 20


def require_space(folder: Path, missing: int, what: str) -> None:
    """Check that the disk below `folder` has room for `missing` more bytes of `what`.

    Raises:
        DownloadError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if missing + _SPARE_BYTES > free:
        raise DownloadError(
            f"{what} needs {missing / 1e6:.0f} MB more; only {free / 1e6:.0f} MB are free at {folder}. "
            "Make room (`edgelm du` shows what can go), or set EDGELM_HOME to a folder on another disk."
        )

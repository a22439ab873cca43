"""What lies in a folder, without what looking into it leaves there.

Finder writes `.DS_Store`, and beside each file on a disk that is no Mac's own (FAT, exFAT, a network's) a `._` of its
name; Explorer writes `desktop.ini` and `Thumbs.db`, Dolphin `.directory`. edgelm reads none of them, and whoever
deletes them has them back at the next look.
"""

from __future__ import annotations

import os
from pathlib import Path

_LEFT_BY_LOOKING = (".ds_store", "desktop.ini", "thumbs.db", ".directory")
_LEFT_FOR_A_FILE = "._"


def is_left_by_looking(name: str) -> bool:
    """Tell whether a file of this name is one that a file manager makes."""
    return name.startswith(_LEFT_FOR_A_FILE) or name.casefold() in _LEFT_BY_LOOKING


def entries_of(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name, without what a file manager leaves.

    Raises:
        OSError: the folder cannot be read.
    """
    return [folder / name for name in sorted(os.listdir(folder)) if not is_left_by_looking(name)]

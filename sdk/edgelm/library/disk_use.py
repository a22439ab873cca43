"""What takes room on the disk: every model, source, unfinished download, session and cache of this user."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgelm.files.folders import state_folder
from edgelm.library.library import Library
from edgelm.library.piecewise import PIECES_SUFFIX

Kind = Literal["package", "source", "download", "session", "cache", "leftover", "other"]

# What the folders of the library hold; of each, every entry is counted by itself.
_KINDS: dict[str, Kind] = {"models": "package", "sources": "source", "downloads": "download", "sessions": "session"}
_CACHES = ("calibration", "known-tokenizers")  # made again when they are missing


@dataclass(frozen=True, kw_only=True)
class DiskUse:
    """One thing on the disk; size in bytes of its files' content. A leftover is what a killed program left behind."""

    kind: Kind
    name: str
    path: Path
    size: int


def disk_use(library: Library) -> list[DiskUse]:
    """Measure everything in the library's folder, and in that of sessions, the largest first.

    Raises:
        ConfigError: the library has no place.
        OSError: a folder cannot be read.
    """
    uses: list[DiskUse] = []
    for root in dict.fromkeys((library.root, state_folder())):  # one folder, where EDGELM_HOME names it
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            kind = _KINDS.get(path.name)
            if kind is not None and path.is_dir():
                uses += _entries(path, kind)
            else:
                uses.append(_use("cache" if path.name in _CACHES else "other", path))
    listed = (use for use in uses if use.size or use.kind == "cache")  # known tokenizers are files without content
    return sorted(listed, key=lambda use: (-use.size, use.name))


def _entries(folder: Path, kind: Kind) -> Iterator[DiskUse]:
    for path in sorted(folder.iterdir()):
        yield _use("leftover" if path.name.startswith(".") else kind, path)


def _use(kind: Kind, path: Path) -> DiskUse:
    return DiskUse(kind=kind, name=path.name, path=path, size=size_of(path))


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder, without links and what is deleted meanwhile."""
    if path.is_dir() and not path.is_symlink():
        return sum(_file_size(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)
    return _file_size(path)


def _file_size(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISLNK(status.st_mode):
        return 0
    # A file of pieces has its full length from the start, but takes no room where a piece is missing; on Windows it
    # takes all of it.
    if sys.platform != "win32" and path.suffix == PIECES_SUFFIX:
        return min(status.st_size, 512 * status.st_blocks)
    return status.st_size

"""A folder of unfinished work that one process has at a time, and the next one where it was stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgelm.files.file_lock import file_lock

_LOCK = ".lock"


class _TakenError(Exception):
    pass


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[bool]:
    """Keep other processes from a folder, and tell whether it is ours: False where another one has it.

    The folder need not be there. The lock file beside it goes with the block, unless that raises an error.
    """

    def refuse(_holder: str) -> None:
        raise _TakenError

    lock, is_done = folder.with_name(f"{folder.name}{_LOCK}"), False

    def tidy() -> None:
        if is_done:
            with contextlib.suppress(PermissionError):  # on Windows one that another process has open stays
                lock.unlink(missing_ok=True)

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock, refuse, tidy=tidy))
        except _TakenError:
            yield False
            return
        yield True
        is_done = True


def holdable_folders(parent: Path) -> list[Path]:
    """List the folders in `parent` that were or are held, also those of which the lock alone is there.

    Other files, such as a file manager's, are none.
    """
    entries = parent.iterdir() if parent.is_dir() else ()
    held = (path for path in entries if path.is_dir() or path.suffix == _LOCK)
    return sorted({path.with_name(path.name.removesuffix(_LOCK)) for path in held})

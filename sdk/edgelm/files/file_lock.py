"""A lock between processes that the system releases when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

_POLL_SECONDS = 0.2


def _locked(path: Path, waiting: Callable[[str], None] | None) -> FileIO:
    """Open and lock the file of that name; one that is deleted meanwhile keeps nobody out."""
    announced = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # who held the lock may have taken it away with its folder
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("a+b", buffering=0))
            while not _try_lock(file):
                if not announced and waiting is not None:
                    file.seek(0)
                    waiting(file.read().decode("ascii").strip())
                announced = True
                time.sleep(_POLL_SECONDS)
            if not _was_deleted(file, path):
                stack.pop_all()
                return file


@contextlib.contextmanager
def file_lock(
    path: Path, waiting: Callable[[str], None] | None = None, *, tidy: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold the lock file `path`; where another process holds it, wait until that one lets go or ends.

    Its folder is made, also where that one has taken it away when it was done.
    On a disk that has no locks, as some of networks have none, nobody is kept out.

    waiting: called once before a wait, with the process id of the holder (empty where it has not written it yet, or
    the disk has no room for it). tidy: called last, also after an error, to take the file away with what it was for.
    """
    file = _locked(path, waiting)
    with contextlib.ExitStack() as stack:
        if sys.platform == "win32":  # it deletes no file that is open
            stack.callback(tidy)
        stack.enter_context(file)
        stack.callback(_unlock, file)
        stack.callback(file.truncate, 0)
        if sys.platform != "win32":  # while it is held, as another process may have the lock next
            stack.callback(tidy)
        file.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk, what makes room must not fail for want of it
            file.write(f"{os.getpid()}\n".encode("ascii"))
        yield


# What NFS without its lock daemon, Lustre without `-o flock` and some FUSE say; the last is what macOS says of shares,
# which has another number there than the one before it.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# The byte that Windows locks: far behind the process id, which others must be able to read.
_LOCKED_BYTE = 1 << 20

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: FileIO) -> bool:
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: FileIO) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

    def _was_deleted(file: FileIO, path: Path) -> bool:
        return False  # nobody can, while it is open here

else:
    import fcntl

    def _try_lock(file: FileIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def _unlock(file: FileIO) -> None:
        with contextlib.suppress(OSError):  # of a disk without locks
            fcntl.flock(file, fcntl.LOCK_UN)

    def _was_deleted(file: FileIO, path: Path) -> bool:
        """Tell whether the name is another file's, or nobody's; by both signs, as disks of others may lack one."""
        opened = os.fstat(file.fileno())
        if opened.st_nlink:
            return False
        with contextlib.suppress(FileNotFoundError):
            return not os.path.samestat(opened, path.stat())
        return True

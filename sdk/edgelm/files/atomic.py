"""Files and folders that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_STAGING, _OLD, _REMOVED = ".edgelm-tmp-", ".edgelm-old-", ".edgelm-removed-"

# Windows renames nothing that anybody has open: another process of ours for a moment, or what looks for viruses.
_WAITS = (0.01,) * 200 if sys.platform == "win32" else ()  # seconds
_IN_USE = "a program that runs may have it open"
# Of Windows: what a process is opened for, and why it is not.
_SYNCHRONIZE, _ACCESS_DENIED, _WAIT_TIMEOUT = 0x100000, 5, 0x102

# What this process is writing now, in any thread. A process id alone does not say it: in a container, the next start of
# a killed program often has the same one.
_tokens: set[str] = set()


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # Windows cannot open a folder; its renames are journaled
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Shared folders of virtual machines and some disks of networks flush no folder. PostgreSQL's fsync_fname passes
        # that over too.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a file, or a folder, the name of another file or one that nothing has; where it is open, wait a little.

    Raises:
        OSError: it is not there, its folder cannot be written, or, on Windows, a program has it or the other open.
    """
    for wait in _WAITS:
        with contextlib.suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(wait)
    try:
        os.replace(source, target)
    except PermissionError as error:
        if _WAITS:
            error.strerror = f"{error.strerror or 'Access is denied'} ({_IN_USE})"
        raise


def may_be_in_use(error: OSError) -> bool:
    """Tell whether `rename` has failed because a program may have a file open."""
    return _IN_USE in (error.strerror or "")


@contextlib.contextmanager
def replace_file(path: Path, beside: Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes `path`'s name when the block ends; an error leaves the old file as it was.

    beside: what it lies beside until then, as one of its leftovers after a kill; `path` itself, if it is not given.

    Raises:
        OSError: the disk is full, the folder cannot be written, or something else than a file has the name.
    """
    path = path.absolute()
    if path.exists() and not path.is_file():  # a rename would put a file in a device's place
        raise OSError(errno.EINVAL, "It is not a file", str(path))
    place = path if beside is None else beside.absolute()
    remove_leftovers(place)
    with _staging_path(place) as staged:
        try:
            with staged.open("xb") as file:
                _hold(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
            rename(staged, path)
            fsync_path(path.parent)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str, beside: Path | None = None) -> None:
    """Replace a text file's content; a crash leaves the old content or the new one. beside: as in `replace_file`."""
    with replace_file(path, beside) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yield an empty staging folder that takes `target`'s name when the block ends without an error.

    An error removes the staging folder and leaves `target` as it was. A kill leaves `target` as it was and a staging
    folder that the next call for the same target removes. Where a folder is replaced, the old one keeps its name until
    the new one is complete and on the disk. A link is followed: the folder that it names is replaced. One that cannot
    be renamed (`_step_aside`) is deleted where it is, and a kill meanwhile leaves what is left of it.

    Raises:
        OSError: the disk is full, the folder cannot be written, or `target` is a file; on Windows also, before the
            block begins, a program has it open.
    """
    # As it is written too: the system passes over no missing folder in missing/../ckpt, which resolves to ckpt.
    with contextlib.suppress(FileExistsError):  # a link to what is made below
        target.parent.mkdir(parents=True, exist_ok=True)
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    with _staging_path(target) as staging:
        try:
            if _WAITS and target.exists():
                _try_to_rename(target, staging)
            staging.mkdir()  # inside: a signal may come as soon as it is there
            with _held_folder(staging):
                yield staging
                for path in sorted(staging.rglob("*")):
                    fsync_path(path)
                fsync_path(staging)
                _swap(staging, target)
            fsync_path(target.parent)
        finally:
            _delete(staging)


def _try_to_rename(target: Path, staging: Path) -> None:
    """Rename a folder and back: where that fails, the last step of its replacement would, after minutes of work."""
    old = _old_name(staging)
    try:
        rename(target, old)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error  # without the other name
    rename(old, target)


def _old_name(staging: Path) -> Path:
    """Return a name that `remove_leftovers` knows, and brings back what has it."""
    return staging.with_name(staging.name.replace(_STAGING, _OLD, 1))


def remove_folder(path: Path) -> None:
    """Remove a folder in one step; of a link, the link alone.

    A kill while the files are deleted leaves a folder that the next `remove_leftovers` beside it deletes; of one that
    cannot be renamed (`_step_aside`), what is left of it.

    Raises:
        OSError: it is not there, or its parent cannot be written.
    """
    if path.is_symlink():
        path.unlink()
        return
    aside = path.with_name(f"{_REMOVED}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    if _step_aside(path, aside):
        _delete(aside)
    else:
        shutil.rmtree(path)


def _step_aside(folder: Path, aside: Path) -> bool:
    """Give a folder that has to go another name; return False where overlayfs renames it not, as it lies in a lower
    layer: in a container all that came with the image does.
    """
    try:
        rename(folder, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _delete(folder: Path) -> None:
    """Delete a folder that nobody names any more, also where a signal comes meanwhile: large files take their time."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # Ctrl-C or SIGTERM; a second one is heard at once
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def _staging_path(target: Path) -> Iterator[Path]:
    """Name a path beside `target`, so that the rename stays on one file system, and with its writer's process id."""
    token = secrets.token_hex(4)
    staged = target.with_name(f"{_STAGING}{os.getpid()}-{token}-{target.name}")
    _tokens.add(token)
    try:
        yield staged
    except OSError as error:
        if error.filename == str(staged):
            error.filename = str(target)  # the name that whoever reads the message has given
        raise
    finally:
        _tokens.discard(token)


def remove_leftovers(target: Path) -> None:
    """Delete what killed writers of `target` left behind, and removals beside it; put an old folder back that lost its
    name.
    """
    for removed in target.parent.glob(f"{_REMOVED}*"):
        shutil.rmtree(removed, ignore_errors=True)
    for leftover in target.parent.glob(f".edgelm-*-{glob.escape(target.name)}"):
        match = re.fullmatch(rf"({_STAGING}|{_OLD})(\d+)-([0-9a-f]{{8}})-{re.escape(target.name)}", leftover.name)
        if match is None or match[3] in _tokens:
            continue
        if (int(match[2]) != os.getpid() and _is_running(int(match[2]))) or _is_held(leftover):
            continue  # another process is writing the same target now: the last one to finish wins
        if match[1] == _OLD and not target.exists():
            rename(leftover, target)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


# What is being written is locked, where the disk can: a process id says nothing of another container or machine.
if sys.platform == "win32":

    def _hold(descriptor: int) -> None:
        pass

    @contextlib.contextmanager
    def _held_folder(folder: Path) -> Iterator[None]:
        yield  # Windows cannot open a folder

    def _is_held(leftover: Path) -> bool:
        return False

else:
    import fcntl

    def _hold(descriptor: int) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    @contextlib.contextmanager
    def _held_folder(folder: Path) -> Iterator[None]:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _hold(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _is_held(leftover: Path) -> bool:
        try:
            descriptor = os.open(leftover, os.O_RDONLY)
        except OSError:
            return False  # it has its name by now, or is another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(descriptor)
        return False


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # where os.kill ends a process whatever the signal
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.OpenProcess(_SYNCHRONIZE, False, pid))
        if not process:
            return ctypes.get_last_error() == _ACCESS_DENIED
        try:
            return bool(kernel.WaitForSingleObject(process, 0) == _WAIT_TIMEOUT)
        finally:
            kernel.CloseHandle(process)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _swap(staging: Path, target: Path) -> None:
    """Give the staging folder its name, also where other processes give it to theirs, or remove that, meanwhile."""
    while not _exchange(staging, target):  # the target is not there, or they cannot change places in one step
        with contextlib.suppress(_OvertakenError):
            _rename_over(staging, target)
            return


class _OvertakenError(Exception):
    pass


def _rename_over(staging: Path, target: Path) -> None:
    if not target.exists():
        _take_name(staging, target)
        return
    old = _old_name(staging)
    try:
        is_aside = _step_aside(target, old)
    except FileNotFoundError as error:
        raise _OvertakenError from error
    if not is_aside:
        try:
            _delete(target)
        finally:  # also after a signal: the old one is gone
            rename(staging, target)
        return
    try:
        _take_name(staging, target)
    except _OvertakenError:
        _delete(old)
        raise
    except BaseException:
        rename(old, target)
        raise
    _delete(old)


def _take_name(staging: Path, target: Path) -> None:
    try:
        rename(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _OvertakenError from error
        raise


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step: renameat2(2) with RENAME_EXCHANGE, on Linux and where the disk can."""
    if sys.platform != "linux":
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0

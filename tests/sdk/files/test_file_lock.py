"""The lock between processes, on disks that have locks and on others."""

from __future__ import annotations

import errno
import os
import sys
from io import FileIO
from pathlib import Path

import pytest

from edgelm.files.file_lock import file_lock
from edgelm.files.held_folder import held_folder, holdable_folders

if sys.platform == "win32":
    pytest.skip("Windows locks bytes of files, on every disk.", allow_module_level=True)

import fcntl


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP])
def test_on_a_disk_without_locks_nobody_is_kept_out(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, "None here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(tmp_path / "lock"), file_lock(tmp_path / "lock"):
        pass


def test_another_failure_of_a_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.EIO, "The disk is gone")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="The disk is gone"), file_lock(tmp_path / "lock"):
        pass


def test_a_lock_file_that_its_holder_deletes_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, tried = tmp_path / "lock", list[int]()
    flock = fcntl.flock

    def deleted_between(file: FileIO, operation: int) -> None:
        if not tried:  # as its holder does, behind our opening of it
            path.unlink()
        tried.append(operation)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", deleted_between)
    with file_lock(path):
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_a_folder_is_one_holders_at_a_time_and_its_lock_goes_with_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, system: str
) -> None:
    if system == "win32":
        request.getfixturevalue("open_files_stay")
    monkeypatch.setattr(sys, "platform", system)
    folder = tmp_path / "work"
    with held_folder(folder) as first, held_folder(folder) as second:
        assert (first, second) == (True, False)
        assert holdable_folders(tmp_path) == [folder]
    assert list(tmp_path.iterdir()) == []

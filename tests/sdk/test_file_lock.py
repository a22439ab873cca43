"""The lock between processes, on disks that have locks and on others."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from edgelm.files.file_lock import file_lock

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

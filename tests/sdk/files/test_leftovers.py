"""What writers leave behind: that of the dead goes, that of the living stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.files import atomic

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="Windows has neither these signals nor these locks")


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_and_of_others_stay(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        stay = [
            f".edgelm-tmp-{living.pid}-0123abcd-package",
            f".edgelm-tmp-{dead.pid}-0123abcd-other-package",
            f".edgelm-tmp-{dead.pid}-0123abcd-package-2",
            ".edgelm-tmp-notes-package",
        ]
        go = [f".edgelm-tmp-{dead.pid}-0123abcd-package", f".edgelm-old-{dead.pid}-0123abcd-package"]
        # The last one: of a process that had our number before us.
        go.append(f".edgelm-tmp-{os.getpid()}-0123abcd-package")
        for name in stay + go:
            (tmp_path / name).mkdir()
        (tmp_path / f".edgelm-tmp-{dead.pid}-4567abcd-package").write_text("of a file")
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "config.json").touch()

        atomic.remove_leftovers(tmp_path / "package")
        living.communicate(b"\n")

    assert sorted(os.listdir(tmp_path)) == sorted([*stay, "package"])
    assert os.listdir(tmp_path / "package") == ["config.json"]  # no older folder has come in its place


@POSIX_ONLY
def test_what_a_process_of_another_user_writes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_pid: int, _signal: int) -> None:
        raise PermissionError

    theirs = f".edgelm-tmp-{os.getpid() + 1}-0123abcd-package"
    (tmp_path / theirs).mkdir()
    monkeypatch.setattr(os, "kill", forbidden)
    atomic.remove_leftovers(tmp_path / "package")
    assert sorted(os.listdir(tmp_path)) == [theirs]


@POSIX_ONLY
def test_what_another_container_writes_is_left_alone_also_where_both_have_one_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write, name in ((atomic.replace_folder, "package"), (atomic.replace_file, "session.npz")):
        with write(tmp_path / name):
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(atomic, "_tokens", set())
                atomic.remove_leftovers(tmp_path / name)
            assert [path.name.endswith(f"-{name}") for path in tmp_path.glob(".edgelm-tmp-*")] == [True]
    assert sorted(os.listdir(tmp_path)) == ["package", "session.npz"]

"""Atomic files and folders: killed at any point, there is the old content or the new one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_processes import exit_status, fork

from edgelm.files import atomic

POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and limits on file sizes are POSIX's")
LINUX_ONLY = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere two folders do not change places in one step"
)

OLD = {"config.json": "old", "model.onnx": "old weights", "only-old.txt": "old"}
NEW = {"config.json": "new", "model.onnx": "new weights", "only-new.txt": "new"}


@pytest.mark.skipif(os.name != "posix", reason="Windows has no named pipes in folders")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match=f"It is not a file: '{tmp_path / name}'"):
            atomic.write_text(tmp_path / name, "new")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def fill(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def is_killed(action: Callable[[Path], None], target: Path, after: int, *, exchange: bool = True) -> bool:
    """Act in a process that kills itself before it touches the disk once more than `after` times; False at its end."""
    left = after

    def count(event: str, _arguments: object = ()) -> None:
        nonlocal left
        if event in ("fsync", "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted() -> None:
        fsync = os.fsync
        os.fsync = lambda descriptor: (count("fsync"), fsync(descriptor))[1]
        if not exchange:
            atomic._exchange = lambda *_: False
        sys.addaudithook(count)
        action(target)

    status = exit_status(fork(counted))
    assert status in (0, -signal.SIGKILL)
    return status != 0


def replace_folder(target: Path) -> None:
    with atomic.replace_folder(target) as staging:
        for name, text in NEW.items():
            (staging / name).write_text(text)


@POSIX_ONLY
@pytest.mark.parametrize("exchange", [pytest.param(True, marks=LINUX_ONLY), False])
def test_a_killed_replace_folder_leaves_the_old_folder_or_the_new_one_whole(tmp_path: Path, exchange: bool) -> None:
    target = tmp_path / "package"
    fill(target, OLD)
    seen = []
    for after in range(100):
        killed = is_killed(replace_folder, target, after, exchange=exchange)
        if exchange:
            seen.append(content(target))
        # Where two folders cannot change places in one step, the name is missing for a moment.
        atomic.remove_leftovers(target)
        seen.append(content(target))
        assert seen[-1] in (OLD, NEW)
        assert names(tmp_path) == ["package"]
        if not killed:
            break
        if seen[-1] == NEW:
            shutil.rmtree(target)
            fill(target, OLD)

    assert after > 10  # so many different points were killed at
    assert seen[0] == OLD
    assert seen[-1] == NEW
    assert all(state in (OLD, NEW) for state in seen)


@POSIX_ONLY
def test_a_killed_write_leaves_the_old_text_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "manifest.json"
    target.write_text("old")
    seen = []
    for after in range(100):
        killed = is_killed(lambda target: atomic.write_text(target, "new"), target, after)
        seen.append(target.read_text())
        if not killed:
            break

    assert after >= 3
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert set(seen) == {"old", "new"}
    assert names(tmp_path) == ["manifest.json"]  # the last writer cleaned up after the killed ones


def test_a_text_is_on_the_disk_before_it_has_its_name_and_the_name_is_before_it_is_said(
    tmp_path: Path, on_disk: list[tuple[str, Path, int]]
) -> None:
    target = tmp_path / "manifest.json"
    atomic.write_text(target, "new")
    staged = on_disk[0][1]
    assert staged.name.endswith("-manifest.json")
    assert on_disk == [("fsync", staged, 3), ("rename", target, 0), ("fsync", tmp_path, 0)]


def test_a_disk_that_flushes_no_folder_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    atomic.write_text(tmp_path / "manifest.json", "new")
    assert (tmp_path / "manifest.json").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, on_disk: list[tuple[str, Path, int]], exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    renameat2 = atomic._exchange

    def exchanging(staging: Path, target: Path) -> bool:
        if exchange and renameat2(staging, target):
            on_disk.append(("rename", target, 0))
            return True
        return False

    monkeypatch.setattr(atomic, "_exchange", exchanging)
    target = tmp_path / "package"
    fill(target, OLD)
    with atomic.replace_folder(target) as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a.txt").write_text("abc")
        (staging / "b.txt").write_text("de")
    named = on_disk.index(("rename", target, 0))
    files = [("fsync", staging / "sub" / "a.txt", 3), ("fsync", staging / "b.txt", 2)]
    folders = [("fsync", staging / "sub", 0), ("fsync", staging, 0)]
    assert sorted(event for event in on_disk[:named] if event[0] == "fsync") == sorted(files + folders)
    assert on_disk[named + 1 :] == [("fsync", tmp_path, 0)]


def test_a_new_folder_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "package"

    with atomic.replace_folder(target) as staging:
        (staging / "a.txt").write_text("a")
        (staging / "sub").mkdir()
        (staging / "sub" / "b.txt").write_text("b")
        assert not target.exists()

    assert (target / "sub" / "b.txt").read_text() == "b"
    assert names(target.parent) == ["package"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda _a, _b: False)
    target = tmp_path / "package"
    fill(target, OLD)

    with atomic.replace_folder(target) as staging:
        for name, text in NEW.items():
            (staging / name).write_text(text)
        assert content(target) == OLD

    assert content(target) == NEW
    assert names(tmp_path) == ["package"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_inside_the_block_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "package"
    fill(target, OLD)

    def write() -> None:
        with atomic.replace_folder(target) as staging:
            (staging / "config.json").write_text("new")
            raise error

    with pytest.raises(type(error)):
        write()

    assert content(target) == OLD
    assert names(tmp_path) == ["package"]


def test_a_signal_that_comes_as_soon_as_the_staging_folder_is_there_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def interrupted(path: Path, *arguments: Any, **options: Any) -> None:
        mkdir(path, *arguments, **options)
        if path.parent == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic.replace_folder(tmp_path / "package"):
        pytest.fail("the block has begun")
    assert names(tmp_path) == []


def test_a_signal_that_comes_while_an_old_folder_is_deleted_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    target = tmp_path / "package"
    fill(target, OLD)
    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic.replace_folder(target) as staging:
        (staging / "config.json").write_text("new")
    assert (content(target), names(tmp_path)) == ({"config.json": "new"}, ["package"])

    monkeypatch.setattr(os, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.remove_folder(target)
    assert names(tmp_path) == []


def test_a_failed_rename_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "package"
    fill(target, OLD)
    replace = os.replace

    def failing(source: Path, destination: Path) -> None:
        if source.name.startswith(".edgelm-tmp-"):
            raise OSError("refused")
        replace(source, destination)

    monkeypatch.setattr(atomic, "_exchange", lambda _a, _b: False)
    monkeypatch.setattr(os, "replace", failing)

    with pytest.raises(OSError, match="refused"), atomic.replace_folder(target) as staging:
        (staging / "config.json").write_text("new")

    assert content(target) == OLD
    assert names(tmp_path) == ["package"]


@pytest.mark.skipif(os.name == "nt", reason="Windows refuses a name that is taken as it does one that is in use")
@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_others_make_or_remove_meanwhile_is_replaced(tmp_path: Path, is_there: bool, monkeypatch: Any):
    target, moved = tmp_path / "package", []
    if is_there:
        fill(target, OLD)

    def overtaken(source: Path, destination: Path, replace: Any = os.replace) -> None:
        if not moved:
            shutil.rmtree(target) if is_there else fill(target, OLD)
        moved.append(source)
        replace(source, destination)

    monkeypatch.setattr(atomic, "_exchange", lambda _a, _b: False)
    monkeypatch.setattr(os, "replace", overtaken)
    replace_folder(target)
    assert (content(target), names(tmp_path)) == (NEW, ["package"])


def test_a_folder_of_an_image_which_overlayfs_does_not_rename_is_replaced_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_overlayfs_does(source: Path, destination: Path, replace: Any = os.replace) -> None:
        if source == tmp_path / "package":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(destination))
        replace(source, destination)

    fill(tmp_path / "package", OLD)
    monkeypatch.setattr(atomic, "_exchange", lambda _a, _b: False)
    monkeypatch.setattr(os, "replace", as_overlayfs_does)
    with atomic.replace_folder(tmp_path / "package") as staging:
        (staging / "config.json").write_text("new")
    assert (content(tmp_path / "package"), names(tmp_path)) == ({"config.json": "new"}, ["package"])
    atomic.remove_folder(tmp_path / "package")
    assert names(tmp_path) == []


def test_a_rename_that_windows_refuses_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter(range(2))
    replace = os.replace

    def replace_where_nobody_reads(source: Path, target: Path) -> None:
        if next(refusals, None) is not None:
            raise PermissionError(13, "Access is denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(atomic, "_WAITS", (0, 0))
    monkeypatch.setattr(os, "replace", replace_where_nobody_reads)
    atomic.write_text(tmp_path / "a.txt", "new")

    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_what_windows_refuses_to_rename_may_be_open_in_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied", str(source), None, str(target))

    fill(tmp_path / "package", OLD)
    monkeypatch.setattr(atomic, "_WAITS", (0, 0))
    monkeypatch.setattr(os, "replace", refuse)

    with pytest.raises(PermissionError, match=r"denied \(a program that runs may have it open\): '.*package'"):
        atomic.remove_folder(tmp_path / "package")
    with (
        pytest.raises(PermissionError, match=r"may have it open\): '[^']*package'$"),
        atomic.replace_folder(tmp_path / "package"),
    ):
        pytest.fail("All of the work would be in vain.")
    assert content(tmp_path / "package") == OLD
    assert names(tmp_path) == ["package"]


def test_a_folder_that_nobody_has_open_is_replaced_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "package", OLD)
    monkeypatch.setattr(atomic, "_WAITS", (0, 0))
    with atomic.replace_folder(tmp_path / "package") as staging:
        assert content(tmp_path / "package") == OLD
        (staging / "config.json").write_text("new")
    assert (content(tmp_path / "package"), names(tmp_path)) == ({"config.json": "new"}, ["package"])


def test_an_error_names_what_was_to_be_written(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "file.txt"
    with pytest.raises(FileNotFoundError) as caught:
        atomic.write_text(missing, "x")
    assert caught.value.filename == str(missing)


def test_a_relative_target_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with atomic.replace_folder(Path("package")) as staging:
        (staging / "a.txt").write_text("a")
    atomic.write_text(Path("b.txt"), "b")

    assert names(tmp_path) == ["b.txt", "package"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    fill(tmp_path / "disk", OLD)
    target = tmp_path / "package"
    target.symlink_to(tmp_path / "disk")

    with atomic.replace_folder(target) as staging:
        (staging / "config.json").write_text("new")

    assert target.is_symlink()
    assert content(tmp_path / "disk") == {"config.json": "new"}
    assert names(tmp_path) == ["disk", "package"]


def test_where_a_link_on_the_way_leads_a_folder_is_made(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(tmp_path / "disk/models")
    with atomic.replace_folder(tmp_path / "models/mine/package") as staging:
        (staging / "config.json").write_text("new")
    assert content(tmp_path / "disk/models/mine/package") == {"config.json": "new"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "package").write_text("a file")

    with pytest.raises(NotADirectoryError), atomic.replace_folder(tmp_path / "package"):
        pass

    assert (tmp_path / "package").read_text() == "a file"
    assert names(tmp_path) == ["package"]


def test_of_a_link_to_a_folder_the_link_alone_is_removed(tmp_path: Path) -> None:
    fill(tmp_path / "disk", OLD)
    (tmp_path / "package").symlink_to(tmp_path / "disk")
    atomic.remove_folder(tmp_path / "package")
    assert names(tmp_path) == ["disk"]
    assert content(tmp_path / "disk") == OLD


def test_two_threads_that_write_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "package"
    first_writes, second_is_done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def first() -> None:
        try:
            with atomic.replace_folder(target) as staging:
                (staging / "config.json").write_text("first")
                first_writes.set()
                second_is_done.wait()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    first_writes.wait()
    with atomic.replace_folder(target) as staging:
        (staging / "config.json").write_text("second")
    assert content(target) == {"config.json": "second"}
    second_is_done.set()
    thread.join()

    assert errors == []
    assert content(target) == {"config.json": "first"}
    assert names(tmp_path) == ["package"]


def test_a_text_that_cannot_be_encoded_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("old")

    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "\ud800")

    assert path.read_text() == "old"
    assert names(tmp_path) == ["manifest.json"]


def test_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a.txt", "é\r\n\n")

    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\n\n"


@POSIX_ONLY
def test_a_full_disk_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text("old")
    # A limit on the size of a file stands in for a full disk; it cannot be lifted again, hence the process.
    program = """
import resource, signal, sys
from pathlib import Path
from edgelm.files import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_text(Path(sys.argv[1]), "new" * 1000)
except OSError:
    sys.exit(3)
"""
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 3

    assert path.read_text() == "old"
    assert names(tmp_path) == ["manifest.json"]


@POSIX_ONLY
def test_what_is_written_is_as_readable_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a")
    (tmp_path / "plain").mkdir()

    atomic.write_text(tmp_path / "atomic.txt", "a")
    with atomic.replace_folder(tmp_path / "atomic"):
        pass

    assert (tmp_path / "atomic.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode

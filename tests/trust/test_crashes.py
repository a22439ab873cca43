"""Crashes and broken disks: the old state or the new one is whole, the next run works, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from crash_operations import OPERATIONS, PULLED

if TYPE_CHECKING:
    from loopback_server import LoopbackServer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills and mounts as Linux does")
PROGRAM = Path(__file__).with_name("crash_operations.py")
# $EDGELM_CRASH_POINTS=50 is what docs/results/trust.md reports; an export takes a second each.
POINTS = int(os.environ.get("EDGELM_CRASH_POINTS", "2"))
# What is typed is kept in this chat alone where the disk refuses it, without an error.
ON_BROKEN_DISKS = [name for name in OPERATIONS if name != "history"]
SMALL = ("text", "chat", "alias", "sign")  # what fits into 40 kB
REMOVALS = ("remove", "remove alias", "remove chat")  # what takes no room
SHIM = Path(__file__).with_name("broken_disk.c")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


class Runner:
    """The program that runs operations; `environment` is what it starts with, `run` adds to it for one of them."""

    def __init__(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, PROGRAM],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, folder: Path, *, die_after: int | None = None, **environment: str) -> Outcome:
        asked = {"name": name, "folder": str(folder), "die_after": die_after}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        names = ("EDGELM_HOME", "SERVER")
        asked["environment"] = {name: os.environ[name] for name in names if name in os.environ} | environment
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        returncode, stdout, stderr = json.loads(self._process.stdout.readline())
        return Outcome(returncode=returncode, stdout=stdout, stderr=stderr)

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    running = Runner(NO_PROXY="*", no_proxy="*")
    yield running
    running.close()


@pytest.fixture(autouse=True)
def pulled_from(server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files |= {"/model.gguf": PULLED, "/tokenizer.json": PULLED}
    monkeypatch.setenv("SERVER", server.url)


def leftovers(folder: Path) -> list[str]:
    """List what has a temporary name; the library's locks and folders are no leftovers."""
    return [str(path) for path in folder.rglob("*") if path.name.startswith(".edgelm-") or ".part" in path.name]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_point_leaves_the_old_state_or_the_new_one_whole(
    tmp_path: Path, name: str, runner: Runner
) -> None:
    operation = OPERATIONS[name]
    origin = tmp_path / "origin"
    origin.mkdir()
    operation.prepare(origin)
    assert operation.state(origin) == "old"
    dry = Path(shutil.copytree(origin, tmp_path / "dry"))
    result = runner.run(name, dry)
    assert result.returncode == 0, result.stderr
    total = int(result.stdout)
    assert operation.state(dry) == "new"

    random = Random(name)
    points = random.sample(range(total), min(POINTS, total))
    seen = set()
    for point in points:
        folder = Path(shutil.copytree(origin, tmp_path / f"killed-{point}"))
        assert runner.run(name, folder, die_after=point).returncode == -signal.SIGKILL
        seen.add(operation.state(folder))
        result = runner.run(name, folder)
        assert result.returncode == 0, (point, result.stderr)
        assert operation.state(folder) == "new"
        assert leftovers(folder) == [], point
        shutil.rmtree(folder)
    assert seen <= {"old", "new"}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 2 MB."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this process may not mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", [name for name in ON_BROKEN_DISKS if name not in REMOVALS])
def test_a_full_disk_leaves_the_old_state_and_an_error(tmp_path: Path, name: str, runner: Runner) -> None:
    operation = OPERATIONS[name]
    # The download checks the room before it begins, and leaves 64 MB free.
    with small_disk(tmp_path / "disk") as disk:
        folder = disk / "work"
        folder.mkdir()
        operation.prepare(folder)
        ballast = disk / "ballast"
        for room in (0, 40_000):
            with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            os.truncate(ballast, max(0, ballast.stat().st_size - room))
            result = runner.run(name, folder)
            assert result.returncode in ((3, 4) if name not in SMALL or room < 4096 else (0,)), result.stderr
            assert operation.state(folder) == ("new" if result.returncode == 0 else "old")
            assert [path for path in leftovers(folder) if ".edgelm-" in path] == []
            ballast.unlink()
        if name == "pull":
            return
        assert runner.run(name, folder).returncode == 0
        assert operation.state(folder) == "new"
        assert leftovers(folder) == []


@pytest.mark.parametrize("name", ON_BROKEN_DISKS)
def test_a_disk_that_cannot_be_written_leaves_the_old_state_and_an_error(
    tmp_path: Path, name: str, runner: Runner
) -> None:
    operation = OPERATIONS[name]
    with small_disk(tmp_path / "disk") as disk:
        operation.prepare(disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        result = runner.run(name, disk)
        assert result.returncode in (3, 4), result.stderr
        assert "Read-only file system" in result.stderr
        assert operation.state(disk) == "old"


@pytest.fixture(scope="module")
def broken_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Run operations with the library that stands for a disk whose writes begin to fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to make a broken disk of")
    library = tmp_path_factory.mktemp("broken_disk") / "broken_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    running = Runner(NO_PROXY="*", no_proxy="*", LD_PRELOAD=str(library))
    yield running
    running.close()


@pytest.mark.parametrize("name", [name for name in ON_BROKEN_DISKS if name not in REMOVALS])
def test_a_disk_that_fails_in_the_middle_leaves_the_old_state_and_an_error(
    tmp_path: Path, name: str, runner: Runner, broken_disk: Runner
) -> None:
    operation = OPERATIONS[name]
    origin = tmp_path / "origin"
    origin.mkdir()
    operation.prepare(origin)
    failed = 0
    for good_calls in [0, 3, 1, 2, 5, 9][:POINTS]:
        folder = Path(shutil.copytree(origin, tmp_path / f"broken-{good_calls}"))
        result = broken_disk.run(name, folder, BROKEN_FOLDER=str(folder), GOOD_CALLS=str(good_calls))
        if result.returncode:
            failed += 1
            assert result.returncode in (3, 4), result.stderr
            assert "Input/output error" in result.stderr
        # A failure to flush after the rename leaves the new state: whole, and reported.
        assert operation.state(folder) in (("old", "new") if result.returncode else ("new",))
        result = runner.run(name, folder)
        assert result.returncode == 0, result.stderr
        assert operation.state(folder) == "new"
        assert leftovers(folder) == []
    assert failed


def test_an_export_that_is_asked_to_end_puts_away_what_it_has_begun(tmp_path: Path) -> None:
    operation = OPERATIONS["export"]
    operation.prepare(tmp_path)
    program = """
import sys, time
from edgelm.cli.main import main
begun = []
def wait(event, arguments):
    if event == "open" and ".edgelm-" in str(arguments[0]) and not begun:
        begun.append(True)
        print("begun", flush=True)
        while True:
            time.sleep(0.01)
sys.addaudithook(wait)
main()
"""
    command = [sys.executable, "-c", program, "export", tmp_path / "source-1", "-o", tmp_path / "package"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert leftovers(tmp_path)
    process.terminate()
    _, errors = process.communicate()

    assert process.returncode == 143, errors
    assert leftovers(tmp_path) == []
    assert operation.state(tmp_path) == "old"


def test_a_user_without_a_home_loads_a_package_by_its_path(package: Path) -> None:
    program = """
import os, pathlib, sys
def no_home():
    raise RuntimeError("Could not determine home directory.")
pathlib.Path.home = no_home
import edgelm
model = edgelm.load(sys.argv[1])
print(len(model.generate("a", edgelm.GenerationConfig(max_new_tokens=3, ignore_eos=True)).token_ids))
"""
    names = ("HOME", "EDGELM_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    homeless = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run(
        [sys.executable, "-c", program, package], env=homeless, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n", "")

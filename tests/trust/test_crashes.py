"""Crashes and broken disks: the old state or the new one is whole, the next run works, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from crash_operations import OPERATIONS, PULLED

if TYPE_CHECKING:
    from loopback_server import LoopbackServer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills and mounts as Linux does")
PROGRAM = [sys.executable, str(Path(__file__).with_name("crash_operations.py"))]
# $EDGELM_CRASH_POINTS=50 is what docs/results/trust.md reports; an export takes a second each.
POINTS = int(os.environ.get("EDGELM_CRASH_POINTS", "2"))
SHIM = Path(__file__).with_name("broken_disk.c")


@pytest.fixture
def environment(server: LoopbackServer) -> dict[str, str]:
    server.files |= {"/model.gguf": PULLED, "/tokenizer.json": PULLED}
    return os.environ | {"SERVER": server.url, "NO_PROXY": "*", "no_proxy": "*", "OMP_NUM_THREADS": "1"}


def run(name: str, folder: Path, environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, name, str(folder), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def leftovers(folder: Path) -> list[str]:
    """List what has a temporary name; the library's locks and folders are no leftovers."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.name.startswith((".edgelm-", ".removed-")) or ".part" in path.name
    ]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_point_leaves_the_old_state_or_the_new_one_whole(
    tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    operation = OPERATIONS[name]
    origin = tmp_path / "origin"
    origin.mkdir()
    operation.prepare(origin)
    assert operation.state(origin) == "old"
    dry = Path(shutil.copytree(origin, tmp_path / "dry"))
    result = run(name, dry, environment)
    assert result.returncode == 0, result.stderr
    total = int(result.stdout)
    assert operation.state(dry) == "new"

    random = Random(name)
    points = random.sample(range(total), min(POINTS, total))
    seen = set()
    for point in points:
        folder = Path(shutil.copytree(origin, tmp_path / f"killed-{point}"))
        assert run(name, folder, environment, point).returncode == -signal.SIGKILL
        seen.add(operation.state(folder))
        result = run(name, folder, environment)
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


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "remove"])
def test_a_full_disk_leaves_the_old_state_and_an_error(tmp_path: Path, name: str, environment: dict[str, str]) -> None:
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
            result = run(name, folder, environment)
            assert result.returncode in ((3, 4) if name != "text" or room < 4096 else (0,)), result.stderr
            assert operation.state(folder) == ("new" if result.returncode == 0 else "old")
            assert [path for path in leftovers(folder) if ".edgelm-" in path] == []
            ballast.unlink()
        if name == "pull":
            return
        assert run(name, folder, environment).returncode == 0
        assert operation.state(folder) == "new"
        assert leftovers(folder) == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_that_cannot_be_written_leaves_the_old_state_and_an_error(
    tmp_path: Path, name: str, environment: dict[str, str]
) -> None:
    operation = OPERATIONS[name]
    with small_disk(tmp_path / "disk") as disk:
        operation.prepare(disk)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        result = run(name, disk, environment)
        assert result.returncode in (3, 4), result.stderr
        assert "Read-only file system" in result.stderr
        assert operation.state(disk) == "old"


@pytest.fixture(scope="session")
def broken_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that stands for a disk whose writes begin to fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here to make a broken disk of")
    library = tmp_path_factory.mktemp("broken_disk") / "broken_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_that_fails_in_the_middle_leaves_the_old_state_and_an_error(
    tmp_path: Path, name: str, environment: dict[str, str], broken_disk: Path
) -> None:
    operation = OPERATIONS[name]
    origin = tmp_path / "origin"
    origin.mkdir()
    operation.prepare(origin)
    failed = 0
    for good_calls in [0, 3, 1, 2, 5, 9][:POINTS]:
        folder = Path(shutil.copytree(origin, tmp_path / f"broken-{good_calls}"))
        broken = environment | {
            "LD_PRELOAD": str(broken_disk),
            "BROKEN_FOLDER": str(folder),
            "GOOD_CALLS": str(good_calls),
        }
        result = run(name, folder, broken)
        if result.returncode:
            failed += 1
            assert result.returncode in (3, 4), result.stderr
            assert "Input/output error" in result.stderr
        # A failure to flush after the rename leaves the new state: whole, and reported.
        assert operation.state(folder) in (("old", "new") if result.returncode else ("new",))
        result = run(name, folder, environment)
        assert result.returncode == 0, result.stderr
        assert operation.state(folder) == "new"
        assert leftovers(folder) == []
    assert failed


def test_a_user_without_a_home_loads_a_package_by_its_path(tmp_path: Path) -> None:
    from edgelm.testing import tiny_model_path

    package = shutil.copytree(tiny_model_path(), tmp_path / "package")
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

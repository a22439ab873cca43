"""Fixtures for all tests: a library that nobody else uses, a server on the loopback interface, the real model."""

from __future__ import annotations

import functools
import gc
import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Several processes test at once, on all cores; threads of numpy and torch would wait for each other, and those of a
# training, which takes all cores, take four times the processor time to wait than to compute, unless they sleep. Before
# their imports, and for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

from edgelm.files import atomic
from edgelm.library import sources
from edgelm.library.library import Library
from edgelm.runtime import cpu, onnx_runtime
from edgelm.testing import tiny_model_path

if TYPE_CHECKING:
    from loopback_server import LoopbackServer
    from playwright import sync_api
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parents[1]
if "PYTEST_XDIST_WORKER" in os.environ:
    # ONNX Runtime has as many threads as cores, which take a tenth of the processor time to wait for each other. What
    # tests start in processes of their own has them still.
    cpu.physical_cores = lambda *_: 1
    # Where a test asks for two, the second looks for work on a core that another process needs: a quarter of the time.
    onnx_runtime.SPIN_MICROSECONDS = 0

# The tests' own modules stand beside this file.
sys.path.insert(0, str(ROOT / "tests"))

REAL_MODEL = "smollm2-135m-instruct"
# `edgelm`, which checks a package on the first of four windows of text: each is a fifth of the time of a pull.
SOON_CHECKED = (
    "from edgelm_export.verification import verify; verify._WINDOWS = 1; from edgelm.cli.start import main; main()"
)

# What tests write need not outlive the machine: waiting for the disk is a third of the time of a small export. The
# processes that tests start wait for it, as users' do.
os.fsync = os.fstat

# Each call of the command line looks through all that is installed, for 6 milliseconds, and always finds the same.
metadata.entry_points = functools.cache(metadata.entry_points)

# jsonschema checks IRIs, which no schema here has, by a grammar that takes two seconds to compile at its import.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# A shell that starts the tests in the background has Ctrl-C ignored, and every process they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Test in one process more than there are cores: they wait for programs and servers a third of the time."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage among the half million objects that are imported with the tests: now, and at each search.

    One takes a third of a second else, and each file of tests brings one.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Let each of several processes collect from another folder on: in a new clone, what one has compiled others read.

    Side by side, each would rewrite the assertions of each file, which takes twice as long as the rest of collecting.
    """
    worker, workers = (os.environ.get(f"PYTEST_XDIST_{name}", "") for name in ("WORKER", "WORKER_COUNT"))
    if worker and config.args == ["tests"]:
        folders = sorted({f"tests/{path.relative_to(ROOT).parts[1]}" for path in (ROOT / "tests").rglob("test_*.py")})
        first = len(folders) * int(worker.removeprefix("gw")) // int(workers)
        config.args[:] = folders[first:] + folders[:first]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the real model's package, for which others would wait, beside the pages, which take longest."""
    items.sort(key=lambda item: (item.path.name != "test_readme.py" and item.path.parent.name != "pages", item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Keep the files of pages together as the tests of a file are: they share a browser."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            folder = os.path.dirname(file)
            return folder if folder.endswith("/pages") else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a name in a folder to each library: most tests make none, and would wait for the disk to have a folder."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture
def home(homes: Iterator[Path]) -> Iterator[Path]:
    """Name a folder, and remove it when what a test has changed in Python is as it was."""
    home = next(homes)
    yield home
    if home.exists():
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_library(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test, and the processes that it starts, an empty library of their own."""
    monkeypatch.setenv("EDGELM_HOME", str(home))
    for name in ("EDGELM_CONFIG", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a copy of the tiny model's package, which a test may change."""
    return shutil.copytree(tiny_model_path(), tmp_path / "package")


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, int]]:
    """Record what waits for the disk, with the size that it has by then, and what gets a name: ("rename", name, 0)."""
    if not sys.platform.startswith("linux"):
        pytest.skip("asks Linux what a descriptor is of")
    events: list[tuple[str, Path, int]] = []
    rename = os.replace

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(("fsync", path, 0 if path.is_dir() else os.fstat(descriptor).st_size))

    def replace(source: Path, target: Path) -> None:
        rename(source, target)
        events.append(("rename", Path(target), 0))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return events


@pytest.fixture
def open_files_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to rename or to delete a file that this process has open or mapped, or its folder, as Windows does.

    Only Linux tells what is open: elsewhere the system's own way is tested.
    """
    if not Path("/proc/self/maps").exists():
        return
    unlink, rename = os.unlink, os.replace

    def check(*paths: str | Path) -> None:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        there = {os.path.realpath(link) for link in links if os.path.isfile(link)}
        there.update(re.findall(r"^(?:\S+ +){5}(/.+)$", Path("/proc/self/maps").read_text(), re.MULTILINE))
        for path in map(os.path.realpath, paths):
            if any(file == path or file.startswith(f"{path}/") for file in there):
                raise PermissionError(13, "Another process is using the file", path)

    def unlink_closed(path: str | Path, *, dir_fd: int | None = None) -> None:
        check(path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{path}")
        unlink(path, dir_fd=dir_fd)

    def rename_closed(source: str | Path, target: str | Path) -> None:
        check(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "unlink", unlink_closed)
    monkeypatch.setattr(os, "replace", rename_closed)
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)


@pytest.fixture
def any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find what has a name in small letters by that name in large ones too, as macOS and Windows do."""
    stat, access = os.stat, os.access

    def found(path: str | Path | int) -> str | Path | int:
        if isinstance(path, int) or os.path.lexists(path):
            return path
        folder, name = os.path.split(path)
        return os.path.join(folder, name.lower())

    monkeypatch.setattr(os, "stat", lambda path, **options: stat(found(path), **options))
    monkeypatch.setattr(os, "access", lambda path, *options, **more: access(found(path), *options, **more))


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Keep what earlier tests left from being finalized at the end of Python's stack, where no finalizer has room."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    """Serve files, and the hub's protocol, at `server.url`."""
    from loopback_server import LoopbackServer

    with LoopbackServer() as running:
        yield running


@pytest.fixture(scope="session")
def shared_library() -> Library:
    """Return the library that keeps the real models between runs; $EDGELM_TEST_HOME names another place for it."""
    return Library(Path(os.environ.get("EDGELM_TEST_HOME", ROOT / ".cache" / "edgelm")).absolute())


@pytest.fixture(scope="session")
def smollm2_gguf(shared_library: Library) -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct, fetched once by our own code; later runs need no network."""
    with shared_library.lock(REAL_MODEL):
        return sources.fetch(sources.resolve(REAL_MODEL), shared_library, REAL_MODEL)


@pytest.fixture(scope="session")
def smollm2_checkpoint(shared_library: Library, smollm2_gguf: Path) -> Path:
    """Return the checkpoint folder of SmolLM2-135M-Instruct, imported once for each state of the exporter's code.

    The file `peak` beside it says how many kB that took at most.
    """
    from peak_of_import import import_measured

    folder = shared_library.root / "checkpoints" / f"{REAL_MODEL}-{digest_of_code(ROOT / 'export')}"
    peak = folder.with_name("peak")
    with shared_library.lock(f"{REAL_MODEL}-checkpoint"):
        if not folder.exists() or not peak.exists():
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            peak.write_text(str(import_measured(smollm2_gguf, folder)))
    return folder


def digest_of_code(folder: Path) -> str:
    """Return a name for the state of the Python files below `folder`: what they made is made anew when they change."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@pytest.fixture(scope="session")
def smollm2_package(shared_library: Library, smollm2_gguf: Path) -> Path:
    """Return the int8 package of SmolLM2-135M-Instruct, pulled once for each state of the exporter's code."""
    folder = shared_library.root / "packages" / f"{REAL_MODEL}-{digest_of_code(ROOT / 'export')}"
    with shared_library.lock(f"{REAL_MODEL}-package"):
        if not folder.exists():
            shutil.rmtree(folder.parent, ignore_errors=True)
            folder.parent.mkdir(parents=True)
            # Of a run that was killed before it moved it away.
            shutil.rmtree(shared_library.package_path(REAL_MODEL), ignore_errors=True)
            command = [sys.executable, "-c", SOON_CHECKED, "pull", REAL_MODEL]
            environment = {**os.environ, "EDGELM_HOME": str(shared_library.root)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stderr.endswith(f"Try it: edgelm chat {REAL_MODEL}\n")
            os.replace(shared_library.package_path(REAL_MODEL), folder)
    return folder


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return Debian's Chromium, without windows: each page would take three times the processor time to be opened.

    A root user without it gets it.
    """
    import debian_packages

    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    if not shutil.which(names[0]):
        debian_packages.install(names[0])
    if not any(map(shutil.which, names)):  # a release of Debian without the shell
        debian_packages.install(names[1])
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs Chromium: apt-get install {' or '.join(names[:2])}")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[sync_api.Browser]:
    """A browser for the tests of a file; each opens a context of its own."""
    from chromium import started

    with started(chromium) as browser:
        yield browser

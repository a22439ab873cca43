"""Fuzz one kind of foreign file, or all: python tests/fuzz/run.py [KIND ...] [--short | --count N] [--seed N]

Each mutant must be read, or end in an error of edgelm, within the limits of time and memory. The first that does not is
kept beside the regression files, which are read before any mutant, and the run fails with its traceback.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from random import Random
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"

from fuzz.target import Target
from fuzz.targets import TARGETS

from edgelm.errors import EdgeLMError

REGRESSIONS = Path(__file__).parents[1] / "trust" / "regressions"
# The work is over in far less: docs/results/trust.md has the slowest. The limit is for what has no end, on any machine.
SECONDS = 60
MEGABYTES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"one of {', '.join(TARGETS)}; none: all of them")
    parser.add_argument("--count", type=int, help="how many mutants; none: the long count of the kind")
    parser.add_argument("--short", action="store_true", help="as many as the tests of each change read")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - TARGETS.keys():
        parser.error(f"there is no kind {', '.join(sorted(unknown))}: the kinds are {', '.join(TARGETS)}.")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    warnings.simplefilter("error", RuntimeWarning)  # numpy's: a number became none, and nobody looked
    for kind in arguments.kinds or TARGETS:
        target = TARGETS[kind]
        count = arguments.count or (target.count if arguments.short else target.long_count)
        fuzz(kind, target, count, arguments.seed)


def fuzz(kind: str, target: Target, count: int, seed: int) -> None:
    """Read `count` mutants; leave by an exception at the first that breaks a promise."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as temporary:
        folder = Path(temporary)
        os.environ["EDGELM_HOME"] = str(folder / "home")
        limit_memory(None)
        seeds = target.prepare(folder)
        path = folder / target.file
        for data in seeds:  # what is whole is read, and what is imported late is imported before the limit
            path.write_bytes(data)
            read(target, folder)
        limit_memory(MEGABYTES)
        for kept in sorted((REGRESSIONS / kind).glob("*")):
            print(f"{kind}: {kept.name}, which once failed", file=sys.stderr)
            path.write_bytes(kept.read_bytes())
            read(target, folder)
        random = Random(seed)
        accepted, slowest, slowest_data, number = 0, 0.0, b"", 0
        start = time.monotonic()
        try:
            for number in range(1, count + 1):
                data = target.mutate(random.choice(seeds), random, seeds)
                path.write_bytes(data)
                before = time.process_time()
                accepted += read_or_keep(kind, target, folder, f"{seed}-{number}")
                seconds = time.process_time() - before
                if seconds > slowest:
                    slowest, slowest_data = seconds, data
        finally:  # also when it is stopped by a signal: what has been done counts
            print(
                f"{kind}: {number} mutants of seed {seed}, {accepted} accepted, slowest {slowest * 1000:.1f} ms "
                f"({len(slowest_data)} bytes), {time.monotonic() - start:.0f} s",
                flush=True,
            )


def read_or_keep(kind: str, target: Target, folder: Path, number: str) -> bool:
    """Read a mutant; one that breaks a promise is kept beside the regression files."""
    try:
        return read(target, folder)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        path = folder / target.file
        kept = REGRESSIONS / kind / f"{type(error).__name__.lower()}-{number}{path.suffix}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kept)
        print(f"{kind}: mutant {number} is kept as {kept}", file=sys.stderr)
        raise


def read(target: Target, folder: Path) -> bool:
    """Tell whether a file was accepted; an error of edgelm is the one other way out."""

    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not read within {SECONDS} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        target.read(folder)
    except EdgeLMError as error:
        if isinstance(error.__cause__, MemoryError):
            raise
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def limit_memory(megabytes: int | None) -> None:
    """Allow so much more than the process has now, None for all; a MemoryError of a reader is a failure."""
    if sys.platform.startswith("linux"):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = most if megabytes is None else pages * resource.getpagesize() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    main()

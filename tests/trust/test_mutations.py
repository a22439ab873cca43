"""Seeded mutants of every kind of foreign file: each is read, or ends in an error of edgelm, within time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.run import REGRESSIONS, read
from fuzz.targets import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits time and memory as POSIX does")
PROGRAM = Path(__file__).parents[1] / "fuzz" / "run.py"
KEPT = [(kind, path) for kind in TARGETS for path in sorted((REGRESSIONS / kind).glob("*"))]


def test_mutants_end_in_no_other_error_than_ours() -> None:
    command = [sys.executable, str(PROGRAM), "--short", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    assert result.returncode == 0, result.stderr
    assert [line.split(" mutants")[0] for line in result.stdout.splitlines()] == [
        f"{kind}: {target.count}" for kind, target in TARGETS.items()
    ]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.filterwarnings("error::RuntimeWarning")  # as the long runs have it
@pytest.mark.parametrize(("kind", "path"), KEPT, ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_what_once_failed_fails_no_more(kind: str, path: Path, tmp_path: Path) -> None:
    target = TARGETS[kind]
    target.prepare(tmp_path)
    (tmp_path / target.file).write_bytes(path.read_bytes())

    read(target, tmp_path)

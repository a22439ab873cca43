"""Seeded mutants of every kind of foreign file: each is read, or ends in an error of edgelm, within time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.run import REGRESSIONS, main
from fuzz.targets import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits time and memory as POSIX does")
PROGRAM = Path(__file__).parents[1] / "fuzz" / "run.py"


def test_mutants_and_what_once_failed_end_in_no_other_error_than_ours() -> None:
    command = [sys.executable, str(PROGRAM), "--short", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert [line.split(" mutants")[0] for line in result.stdout.splitlines()] == [
        f"{kind}: {target.count}" for kind, target in TARGETS.items()
    ]
    once_failed = [line for line in result.stderr.splitlines() if line.endswith(", which once failed")]
    assert len(once_failed) == len([path for path in REGRESSIONS.rglob("*") if path.is_file()]) > 0


def test_a_kind_that_is_none_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "gguf", "ggfu"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no kind ggfu: the kinds are gguf-adapter, gguf, " in capsys.readouterr().err

"""Seeded mutants of every kind of foreign file: each is read, or ends in an error of edgelm, within time and memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from forked_processes import exit_status, fork
from fuzz.run import REGRESSIONS, main
from fuzz.targets import TARGETS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits time and memory as POSIX does")


def test_mutants_and_what_once_failed_end_in_no_other_error_than_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--short", "--seed", "1"])
    output, errors = tmp_path / "output", tmp_path / "errors"

    def run() -> None:
        sys.stdout, sys.stderr = (path.open("w", buffering=1, encoding="utf-8") for path in (output, errors))
        main()

    status = exit_status(fork(run))  # the time and memory are limited of the process
    assert status == 0, errors.read_text()
    assert [line.split(" mutants")[0] for line in output.read_text().splitlines()] == [
        f"{kind}: {target.count}" for kind, target in TARGETS.items()
    ]
    once_failed = [line for line in errors.read_text().splitlines() if line.endswith(", which once failed")]
    assert len(once_failed) == len([path for path in REGRESSIONS.rglob("*") if path.is_file()]) > 0


def test_a_kind_that_is_none_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "gguf", "ggfu"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no kind ggfu: the kinds are gguf-adapter, gguf, " in capsys.readouterr().err

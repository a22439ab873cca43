"""Worker: a process with one runtime in it, as the benchmark sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click

from contestants import Contestant
from workload import CONTEXT, THREADS

_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """Start a runtime, wait until its model is loaded, ask it for one thing at a time, and end it on leaving.

    python: of the environment that has the runtime; None is this one.

    Raises:
        ClickException: the process died; the message has its last words.
    """

    def __init__(
        self,
        contestant: Contestant,
        model: Path,
        *,
        huge_pages: bool,
        log: Path,
        context: int = CONTEXT,
        python: str | None = None,
    ) -> None:
        self.name, self._log = contestant.name, log
        options = {"path": str(model), "threads": THREADS, "context": context, "huge_pages": huge_pages}
        command = [python or sys.executable, "-m", "workers.serve", contestant.engine, json.dumps(options)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).resolve().parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
            )
        self.start = self._read()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def ask_watched(self, command: str, **arguments: Any) -> tuple[dict[str, Any], float]:
        """Ask, and measure how many CPUs all other processes used meanwhile."""
        started, busy, own = time.perf_counter(), _busy_seconds(), self._own_seconds()
        answer = self.ask(command, **arguments)
        others = (_busy_seconds() - busy) - (self._own_seconds() - own)
        return answer, max(0.0, others / (time.perf_counter() - started))

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            last_words = self._log.read_text(encoding="utf-8")[-2000:]
            raise click.ClickException(f"The worker of {self.name} died:\n{last_words}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _own_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def _busy_seconds() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(ticks) for ticks in file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS

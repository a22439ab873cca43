"""The log of a run: log.jsonl, one JSON object a line, and TensorBoard's files where it is installed.

{"step": 1, "loss": 9.01, "learning_rate": 6e-05, "grad_norm": 2.1, "tokens": 65536, ...}
{"step": 250, "validation_loss": 4.32}
{"step": 500, "prompt": "The sea", "sample": " is blue."}
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgelm.errors import TrainingError
from edgelm.number_bounds import is_count

_LAST_STEP = 1 << 53  # which a float still holds


class Reporter(Protocol):
    """What shows a run to its user while it goes on."""

    def step(self, record: StepRecord) -> None:
        """Show a step."""

    def working(self, text: str) -> None:
        """Say what is being computed, until there is more to show."""

    def note(self, text: str) -> None:
        """Show a line that stays. A signal's comes from a thread of its own."""


class SilentReporter:
    """Show nothing."""

    def step(self, record: StepRecord) -> None:
        """Show nothing."""

    def working(self, text: str) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step. `reported` has the recipe's own figures besides the loss, by names that the log has not."""

    step: int
    max_steps: int
    log_every: int  # the run's setting, which one that goes on has from its folder
    loss: float
    reported: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int  # read since the run began
    seconds: float  # of this step
    tokens_per_second: float
    mfu: float | None  # of the devices' peak
    memory_bytes: int | None  # the most that this process has held
    seconds_left: float

    def to_json(self) -> dict[str, Any]:
        """Return what the log keeps.

        Raises:
            TrainingError: a figure of the recipe has the name of one that every log has.
        """
        first = {"step": self.step, "loss": self.loss}
        rest = {
            "learning_rate": self.learning_rate,
            # Infinite in a step that fp16 could not hold, for which JSON has no number.
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else None,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "mfu": None if self.mfu is None else round(self.mfu, 4),
            "memory_bytes": self.memory_bytes,
        }
        if taken := sorted(self.reported.keys() & {*first, *rest, "validation_loss"}):
            raise TrainingError(f"The loss reports {taken[0]!r}, which the log has already. Give it another name.")
        return {**first, **self.reported, **rest}


class TrainLog:
    """Append to the log of a run. Made by `open_log`."""

    def __init__(self, path: Path, tensorboard: Any) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = tensorboard

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line, so that it outlives this process.

        Raises:
            TrainingError: the disk is full or refuses.
        """
        try:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        if self._tensorboard is not None:
            self._write_events(entry)

    def sync(self) -> None:
        """Put what was written on the disk: a checkpoint that follows must not know more than the log."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot_write(error) from error
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """End the log."""
        with contextlib.suppress(OSError):  # each line was flushed, or its error raised
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _cannot_write(self, error: OSError) -> TrainingError:
        return TrainingError(f"Cannot write {self.path}: {error}. Make room, and go on with --resume.")

    def _write_events(self, entry: Mapping[str, Any]) -> None:
        for name, value in entry.items():
            if isinstance(value, float):
                self._tensorboard.add_scalar(name, value, entry["step"])
        if "sample" in entry:
            self._tensorboard.add_text("sample", entry["prompt"] + entry["sample"], entry["step"])


@contextlib.contextmanager
def open_log(path: Path, *, after_step: int, tensorboard: bool) -> Iterator[TrainLog]:
    """Open a log to go on after `after_step`: what later steps wrote, which are trained anew, is dropped."""
    _truncate(path, after_step)
    log = TrainLog(path, _event_writer(path.parent / "tensorboard", after_step) if tensorboard else None)
    try:
        yield log
    finally:
        log.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log; one that a kill cut off is passed over.

    Raises:
        TrainingError: there is no log, or it cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TrainingError(f"Cannot read {path}: {error}. Name the folder of a run.") from error
    entries = [_entry(line) for line in lines]
    return [entry for entry in entries if entry is not None]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and is_count(entry.get("step"), 0, _LAST_STEP) else None


def _truncate(path: Path, after_step: int) -> None:
    if not path.exists():
        return
    end = 0
    for line in path.read_bytes().splitlines(keepends=True):
        entry = _entry(line)
        if not line.endswith(b"\n") or entry is None or entry["step"] > after_step:
            break
        end += len(line)
    os.truncate(path, end)


def _event_writer(folder: Path, after_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after_step + 1)

"""LiveLine: how a run shows itself on standard error, one line that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import click

from edgelm.cli.output import can_redraw, columns_of_stderr, one_line, redraw_line
from edgelm_training.runs.launcher import launched_place
from edgelm_training.runs.train_log import StepRecord

_SECONDS_BETWEEN = 0.1


class LiveLine:
    """Show each step on a terminal, and each N-th elsewhere (`log_every`); notes stay.

    Where nobody can read it any more (the terminal was closed behind a run in the background), nothing is shown, and
    the run goes on: its log has it all.
    """

    def __init__(self) -> None:
        self._redraws = can_redraw(sys.stderr)
        self._shown_at = 0.0
        self._where_read = contextlib.suppress(OSError)

    def step(self, record: StepRecord) -> None:
        """Show a step: where the run is, how well and how fast it goes, and how long it still takes."""
        last = record.step == record.max_steps
        if self._redraws:
            now = time.monotonic()
            if last or now - self._shown_at >= _SECONDS_BETWEEN:
                self._shown_at = now
                width = columns_of_stderr() - 1
                with self._where_read:
                    redraw_line(step_line(record)[:width] + ("\n" if last else ""))
        elif last or record.step == 1 or record.step % record.log_every == 0:
            with self._where_read:
                click.echo(step_line(record), err=True)

    def working(self, text: str) -> None:
        """Say on a terminal what is being computed, until there is the line of a step: one may take minutes."""
        if self._redraws and not self._shown_at:
            with self._where_read:
                redraw_line(f"{text} …")

    def note(self, text: str) -> None:
        """Show a line that stays above the changing one."""
        with self._where_read:
            if self._redraws:
                redraw_line()
            click.echo(one_line(text), err=True)

    def close(self) -> None:
        """Leave the cursor below what was shown."""
        if self._redraws:
            with self._where_read:
                redraw_line()


@contextlib.contextmanager
def loading_torch() -> Iterator[None]:
    """Say on a terminal that the block imports PyTorch, which takes seconds; of several processes only the first."""
    rank, _, _ = launched_place()
    line = LiveLine()
    if rank == 0:
        line.working("Loading PyTorch")
    try:
        yield
    finally:
        if rank == 0:
            line.close()


def step_line(record: StepRecord) -> str:
    """Describe one step in a line."""
    parts = [
        f"step {record.step}/{record.max_steps}",
        f"loss {record.loss:.4f}",
        *(f"{name} {value:.4g}" for name, value in record.reported.items()),
        f"lr {record.learning_rate:.2e}",
        f"norm {record.grad_norm:.2f}",
        f"{record.tokens_per_second:,.0f} tokens/s",
        *([] if record.mfu is None else [f"MFU {record.mfu:.0%}"]),
        f"{duration(record.seconds_left)} left",
        *([] if record.memory_bytes is None else [f"{record.memory_bytes / 1e9:.2f} GB"]),
    ]
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Write a time for people: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes // 60 % 24} h"

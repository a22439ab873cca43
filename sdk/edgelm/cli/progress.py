"""What a command shows while something takes its time: on standard error, and only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgelm.cli.columns import columns, cut_to
from edgelm.cli.output import can_redraw, columns_of_stderr, is_terminal, one_line, redraw_line

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

_BAR = 36
# Columns that click puts around label and bar: brackets, percent, the time that is left ("1d 02:03:04"). A line that is
# too long would wrap, and the next one be drawn below it instead of over it.
_AROUND = 25


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text …` while the block runs."""
    passing = can_redraw(sys.stderr)
    if passing:
        text = cut_to(text, columns_of_stderr() - 3)  # of a longer one, only the last line could be taken away again
    if is_terminal(sys.stderr):
        click.echo(f"{text} …", err=True, nl=not passing)
    try:
        yield
    finally:
        if passing:
            redraw_line()


class ProgressLine:
    """One progress bar after another, each with its label: bytes of a file, tensors of a model.

    Where no line can be drawn anew, a line says when the work begins, and one when each quarter of it is done.
    """

    def __init__(self) -> None:
        self._label = ""
        self._bar: ProgressBar[int] | None = None
        self._before, self._began = 0, 0.0
        self._said = ("", 0)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` is done; another label ends one bar and begins the next."""
        if not total or not is_terminal(sys.stderr):
            return
        if not can_redraw(sys.stderr):
            self._say(label, 4 * done // total)
            return
        if self._bar is None or label != self._label:
            self.close()
            self._label = label
            room = columns_of_stderr() - _AROUND
            shown = cut_to(one_line(label), max(room - 1, 1))
            width = max(min(_BAR, room - columns(shown)), 1)
            self._bar = click.progressbar(length=total, label=shown, width=width, file=sys.stderr)
            self._bar.render_progress()
            self._before, self._began = done, time.time()
        elif done > self._before:
            # click divides the time since `start` by all that is done: what was done before this run took none of it.
            now = time.time()
            self._bar.start = now - (now - self._began) * done / (done - self._before)
        self._bar.update(done - self._bar.pos)

    def _say(self, label: str, quarters: int) -> None:
        if (label, quarters) != self._said:
            self._said = (label, quarters)
            click.echo(f"{one_line(label)}: {25 * quarters} %", err=True)

    def close(self) -> None:
        """End the last bar."""
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


def progress_line() -> contextlib.AbstractContextManager[ProgressLine]:
    """Return what draws the progress of a block."""
    return contextlib.closing(ProgressLine())

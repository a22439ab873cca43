"""Interruption: SIGTERM and Ctrl-C ask a run to save and leave, instead of ending it somewhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remember the first signal that came in the block; a second Ctrl-C interrupts at once, as without it.

    note: says to the user that the first one came, since a step can take minutes.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.signal: int | None = None
        self._note = note
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread alone; elsewhere they are the program's own business.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        with contextlib.suppress(RuntimeError):  # where it comes in the middle of other output
            self._note("Ending after this step, with a checkpoint. Ctrl-C again ends at once, without one.")

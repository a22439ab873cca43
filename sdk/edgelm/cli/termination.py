"""Termination: SIGTERM ends a command as an error does, so that it puts away what it has begun."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# As a program that the signal itself had ended (128 + its number).
EXIT_TERMINATED = 143


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM leave the block by SystemExit; a second one, while that is under way, ends the process at once.

    What handles the signal in its own way, such as a server or a training run, does so inside of the block.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to that one alone
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(EXIT_TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

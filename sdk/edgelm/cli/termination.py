"""Termination: SIGTERM, and a terminal that closes, end a command as an error does: it puts away what it has begun."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# Windows knows no SIGHUP.
_ENDING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block by SystemExit; a second one, while that is under way, ends the process.

    The exit code is that of a program that the signal itself had ended (128 + its number). A signal that is ignored
    from the start, as under nohup, stays ignored. A server or a training run sets its own handlers inside of the block.
    """
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to that one alone
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    previous = {number: signal.getsignal(number) for number in _ENDING}
    taken = [number for number in _ENDING if previous[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, previous[number])

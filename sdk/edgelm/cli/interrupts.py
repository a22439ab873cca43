"""Interrupts: what Ctrl-C does while a chat runs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Let Ctrl-C stop what can be stopped, and do nothing at all other moments, such as while a session is saved.

    One handler stays for the whole chat, and a flag says what it does: handlers that take turns leave moments between
    them in which an interrupt would end the chat. It raises at most once for each block that can be broken off.
    """

    def __init__(self) -> None:
        self._is_breakable = False
        self._cancel: threading.Event | None = None

    def __enter__(self) -> Interrupts:
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._cancel is not None and not self._cancel.is_set():
            self._cancel.set()
        elif self._is_breakable:
            self._is_breakable = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """Let Ctrl-C break the block off, with KeyboardInterrupt."""
        self._is_breakable = True
        try:
            yield
        finally:
            self._is_breakable = False

    @contextlib.contextmanager
    def stopping(self) -> Iterator[threading.Event]:
        """Yield an event that Ctrl-C sets: the running step ends in order. A second Ctrl-C breaks the block off."""
        self._cancel = threading.Event()
        self._is_breakable = True
        try:
            yield self._cancel
        finally:
            self._is_breakable = False
            self._cancel = None

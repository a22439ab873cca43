"""Interruption: SIGTERM and Ctrl-C ask a run to save and leave, instead of ending it somewhere."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remember the first signal that came in the block; a second Ctrl-C interrupts, as without it.

    note: says to the user that the first one came, since a step can take minutes; from a thread of its own.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.signal: int | None = None
        self._arrived: list[int] = []
        self._note = note
        self._block = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread alone; elsewhere they are the program's own business.
        if threading.current_thread() is threading.main_thread():
            self._block.enter_context(self._announced())
            for number in _SIGNALS:
                self._block.callback(signal.signal, number, signal.signal(number, self._remember))
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        # Python calls this once for two signals that come during one call of PyTorch.
        if number == signal.SIGINT and (self.signal is not None or number in self._arrived[1:]):
            raise KeyboardInterrupt
        self.signal = number

    @contextlib.contextmanager
    def _announced(self) -> Iterator[None]:
        """Say in the block that a signal came, at once: Python calls handlers between two calls of PyTorch, which can
        take many seconds each.
        """
        read, write = socket.socketpair()
        with read:
            with write:
                write.setblocking(False)
                thread = threading.Thread(target=self._announce, args=(read,), daemon=True)
                thread.start()  # first: the system may refuse one more
                previous = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
                try:
                    yield
                finally:
                    signal.set_wakeup_fd(previous)
            thread.join()  # which the end of the socket ends

    def _announce(self, numbers: socket.socket) -> None:
        while number := numbers.recv(1):
            if number[0] not in _SIGNALS:
                continue
            self._arrived.append(number[0])
            if len(self._arrived) == 1:
                with contextlib.suppress(OSError):  # nobody reads it
                    self._note("Ending after this step, with a checkpoint. Ctrl-C again ends without one.")

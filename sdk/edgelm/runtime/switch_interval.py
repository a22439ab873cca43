"""SwitchInterval: how long a thread waits for Python's interpreter where another one computes in Python.

A step of the graph releases the interpreter, and so do numpy's larger operations after it. Each has to get it back, and
beside a busy thread that takes an interval: 5 ms by default, once or twice in a step of 6 ms
(docs/results/busy-thread.md).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

_Item = TypeVar("_Item")


class SwitchInterval:
    """Set the interpreter's switch interval in `with` blocks; the last one to end puts back what was set before.

    It is one for the whole interpreter (`sys.setswitchinterval`): all its threads take turns as often meanwhile. A
    shorter one than `seconds` stays, and so does one that the program sets while a block runs.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._inside = seconds, 0
        self._before = self._ours = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._seconds, self._before))
                self._ours = sys.getswitchinterval()  # in whole microseconds
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and sys.getswitchinterval() == self._ours:
                sys.setswitchinterval(self._before)

    def during(self, items: Generator[_Item, None, None]) -> Generator[_Item, None, None]:
        """Yield the items of a generator: set while it makes one, not while the consumer has it."""
        with closing(items):
            while True:
                with self:
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item


# Threads that only compute in Python lose 4 to 5 % of their work to switching this often.
SHORT_SWITCH_INTERVAL = SwitchInterval(1e-4)

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
from threading import get_ident
from typing import TypeVar

_Item = TypeVar("_Item")


class SwitchInterval:
    """Set the interpreter's switch interval in `with` blocks; the last one to end puts back what was set before.

    It is one for the whole interpreter (`sys.setswitchinterval`): all its threads take turns as often meanwhile. A
    shorter one than `seconds` stays, and so does one that the program sets while a block runs. What Ctrl-C kept from
    being put back is, at the end of the thread's next block; a thread that has ended inside of one is not waited for.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._inside = seconds, set[int]()  # the threads inside
        self._before = 0.0
        self._ours: float | None = None  # what it is set to; None where that is not known
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._others_inside():
                self._inside.add(get_ident())
                return
            now = sys.getswitchinterval()
            if now != self._ours:  # else an interrupt has left it
                self._before = now
            self._ours = None
            self._inside.add(get_ident())
            sys.setswitchinterval(min(self._seconds, self._before))
            self._ours = sys.getswitchinterval()  # in whole microseconds

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if get_ident() not in self._inside:
                return  # it was left with a block inside of this one
            self._inside.discard(get_ident())
            if not self._others_inside():
                if self._ours in (None, sys.getswitchinterval()):
                    sys.setswitchinterval(self._before)
                self._ours = None

    def _others_inside(self) -> bool:
        """Forget the threads that are no more: of a fork, those of the process that it is of."""
        if self._inside:
            self._inside.intersection_update(sys._current_frames())
        return bool(self._inside)

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

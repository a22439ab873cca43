"""SharedUse: what many threads use at once, and one changes when nobody else uses it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from threading import get_ident


class SharedUse(ContextDecorator):
    """Let threads in together (`with use:`, or `@use` of a function), or one of them alone (`with use.alone():`).

    That one waits for those inside, and goes before those who come later. A thread enters once: it does not nest. A
    thread that Ctrl-C interrupted on its way in or out counts as inside until it enters again; it never waits for
    itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside, self._closed, self._ended = set[int](), False, False  # the threads inside

    def __enter__(self) -> None:
        # A step of a model passes here: so no generator, no call of a Python function, and a notification only where
        # somebody waits for it.
        with self._lock:
            while self._closed and self._is_kept_out():
                self._changed.wait()
            self._inside.add(get_ident())

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside.discard(get_ident())
            if self._closed:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have it alone in the block."""
        closed = False
        try:
            with self._changed:
                while self._closed and self._is_kept_out():
                    self._changed.wait()
                closed = self._closed = True
                self._changed.wait_for(self._have_others_left)
            yield
        finally:
            if closed:
                with self._changed:
                    self._closed = self._ended
                    self._changed.notify_all()

    def end(self) -> None:
        """Let no daemon thread in any more, and wait for those inside: the interpreter is about to end under them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = self._ended = True
            self._changed.wait_for(self._have_others_left)

    def _have_others_left(self) -> bool:
        return self._inside <= {get_ident()}

    def _is_kept_out(self) -> bool:
        """Tell whether this thread waits where it is closed; at the interpreter's end, the other threads go on."""
        return not self._ended or threading.current_thread().daemon


def end_with_program(use: SharedUse, owner: object) -> None:
    """End a use when the program ends, or `owner` does; not in a fork, which has none of the threads inside."""
    weakref.finalize(owner, _end, use, os.getpid())


def _end(use: SharedUse, process: int) -> None:
    if os.getpid() == process:
        use.end()


# Calls of libraries that release the interpreter's lock; the steps of a session have a use of their own. When a program
# ends, Python ends a daemon thread where it takes the lock again: inside C++ or Rust that aborts the process. Made
# before the first engine, and therefore ended after the last one.
NATIVE_CALLS = SharedUse()
end_with_program(NATIVE_CALLS, NATIVE_CALLS)

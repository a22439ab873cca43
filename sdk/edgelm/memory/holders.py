"""Holders: what has keys and values that a session computed, for as long as it lives."""

from __future__ import annotations

import threading
import weakref
from typing import Any


class Holders:
    """Know the caches, batches and prefix caches of one session without keeping them. Safe to share between threads.

    As long as one of them has what an adapter computed, no other adapter may get that adapter's name.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end an answer inside, which is kept then
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def add(self, holder: object) -> None:
        """Know one more; one that is known stays so."""
        with self._lock:
            self._known.add(holder)

    def all(self) -> list[Any]:
        """Return those that live."""
        with self._lock:
            return list(self._known)

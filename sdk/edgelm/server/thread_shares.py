"""ThreadShares: what takes too long for the event loop, in threads of which no caller has all."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class ThreadShares:
    """Call functions in threads, of which a caller has a third at most.

    Who asks first for a thread gets it, and to encode a megabyte takes one for seconds: 24 such texts of one caller
    kept all others waiting for 40 s.
    """

    def __init__(self) -> None:
        # Of the threads that asyncio starts: six for two processors. Python 3.13 counts those of this process alone.
        processors: int | None = getattr(os, "process_cpu_count", os.cpu_count)()
        self._of_each = max(1, min(32, (processors or 1) + 4) // 3)
        self._of_caller: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    async def run(
        self, caller: str, function: Callable[Parameters, Result], *given: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Call a function in a thread, in the turn of its caller."""
        async with self._of_caller.setdefault(caller, asyncio.Semaphore(self._of_each)):
            return await asyncio.to_thread(function, *given, **named)

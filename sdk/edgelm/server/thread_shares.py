"""ThreadShares: what takes too long for the event loop, in threads of which no caller has all."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Of the threads that asyncio starts: six where there are two processors.
_OF_EACH = max(1, min(32, (os.cpu_count() or 1) + 4) // 3)


class ThreadShares:
    """Call functions in threads, of which a caller has a third at most.

    Who asks first for a thread gets it, and to encode a megabyte takes one for seconds: 24 such texts of one caller
    kept all others waiting for 40 s.
    """

    def __init__(self) -> None:
        self._of_caller: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    async def run(
        self, caller: str, function: Callable[Parameters, Result], *given: Parameters.args, **named: Parameters.kwargs
    ) -> Result:
        """Call a function in a thread, in the turn of its caller."""
        async with self._of_caller.setdefault(caller, asyncio.Semaphore(_OF_EACH)):
            return await asyncio.to_thread(function, *given, **named)

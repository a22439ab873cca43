"""The C library's allocator, where it can be told what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable

from edgelm.memory.c_library import c_library

_M_MMAP_THRESHOLD = -3  # malloc.h


class Returned:
    """Something large, whose memory goes back to the system when it is freed: the allocator would keep most of it.

    It is a base class: what it sets itself is the newest attribute of a subclass alone. From Python 3.14 on, those that
    an object's own class sets come first.
    """

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Let memory be returned when the last of this object's attributes is freed.

        Not before: in a reference cycle, other objects may be finalized after this one, and use it.
        """
        if not is_finalizing():  # a default argument, since the names of this module are gone by then
            # The newest attribute is freed last. It is not set in vars(self): that makes a dictionary, which in a cycle
            # would hold it until the next collection.
            self._end = _End()


class _End:
    def __del__(self) -> None:
        return_freed_memory()


def return_freed_memory() -> None:
    """Give memory that was freed back to the system: malloc_trim(3), on Linux with glibc; elsewhere nothing.

    Loading a model frees what its tokenizer was parsed from, and the allocator would keep it: 17 MB of 290.
    """
    _call("malloc_trim", 0)


def map_arrays_from(size: int) -> None:
    """Let arrays of `size` bytes and more go back to the system as soon as they are freed, from now on.

    mallopt(3), on Linux with glibc; elsewhere nothing. Left alone, glibc raises that bound to the largest array freed,
    and arrays below it leave holes between those that stay: 40 MB in the export of 1.7B parameters. Each array that is
    mapped costs the system's zeros: too small a bound makes arithmetic slower.
    """
    _call("mallopt", _M_MMAP_THRESHOLD, size)


def _call(name: str, *arguments: int) -> None:
    function = getattr(c_library(), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)

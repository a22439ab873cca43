"""The processor's cores, each once, whatever number of threads it has."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path
from typing import Any

_PROCESSORS = Path("/sys/devices/system/cpu")
_PROCESSOR_CORES = 0  # RelationProcessorCore, of Windows' LOGICAL_PROCESSOR_RELATIONSHIP


def physical_cores(process: int = 0) -> int:
    """Count the physical cores that a process may run on (on Windows and macOS: those that there are); 0 is this one.

    Two threads on one core share its vector units: for matrix products the second brings nothing. Where the system does
    not say which logical processors share a core, all count.

    Source: Linux's thread_siblings_list in sysfs; Windows' GetLogicalProcessorInformationEx; macOS' hw.physicalcpu of
    sysctl.
    """
    try:
        if sys.platform == "linux":
            return _of_linux(os.sched_getaffinity(process))
        if sys.platform == "win32":
            return of_windows(_records_of_windows(ctypes.windll.kernel32))
        if sys.platform == "darwin":
            return _of_macos()
    except (AttributeError, OSError, struct.error):  # a system that is older, or otherwise made
        pass
    return os.cpu_count() or 1


def _of_linux(allowed: set[int]) -> int:
    cores = set()
    for processor in allowed:
        try:
            cores.add((_PROCESSORS / f"cpu{processor}/topology/thread_siblings_list").read_text("ascii"))
        except OSError:
            return len(allowed)
    return len(cores)


def _records_of_windows(kernel: Any) -> bytes:
    length = ctypes.c_ulong(0)
    kernel.GetLogicalProcessorInformationEx(_PROCESSOR_CORES, None, ctypes.byref(length))  # says how long they are
    records = ctypes.create_string_buffer(length.value)
    if not kernel.GetLogicalProcessorInformationEx(_PROCESSOR_CORES, records, ctypes.byref(length)):
        raise OSError("Windows does not say which cores there are.")
    return records.raw[: length.value]


def of_windows(records: bytes) -> int:
    """Count records of SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, one for each core: each says what it is, and its size.

    Raises:
        struct.error: the last one is cut off.
    """
    count = start = 0
    while start < len(records):
        _kind, size = struct.unpack_from("<II", records, start)
        start += max(size, 8)
        count += 1
    return count


def _of_macos() -> int:
    library = ctypes.CDLL(None)
    count, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    if library.sysctlbyname(b"hw.physicalcpu", ctypes.byref(count), ctypes.byref(size), None, ctypes.c_size_t(0)):
        raise OSError("macOS does not say which cores there are.")
    return count.value

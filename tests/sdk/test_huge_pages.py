from __future__ import annotations

import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from edgelm.memory import huge_pages

SIZE = 32 << 20


def _bytes_on_huge_pages(memory: mmap.mmap) -> int:
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= start < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are moved on Linux alone")
def test_new_memory_moves_and_keeps_its_content():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[madvise]" not in enabled.read_text():
        pytest.skip("this kernel has no huge pages, or uses them without being asked")
    content = bytes(range(256)) * (SIZE // 256)
    before = huge_pages.large_mappings()
    new = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    new[:] = content
    thread = huge_pages.move_new_mappings(before)
    assert thread is not None
    thread.join()
    if (moved := _bytes_on_huge_pages(new)) == 0:
        pytest.skip("the kernel refuses (older than Linux 6.1, or forbidden for this process)")
    assert moved >= SIZE - (4 << 20)
    assert new[:] == content


def test_nothing_new_needs_no_thread():
    assert huge_pages.move_new_mappings(huge_pages.large_mappings()) is None

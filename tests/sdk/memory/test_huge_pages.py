from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgelm.memory import huge_pages, pagemap
from edgelm.memory.pagemap import Pagemap

PAGE = huge_pages.page_bytes() or 2 << 20
SIZE = 16 * PAGE


def _bytes_on_huge_pages(start: int) -> int:
    """Count those of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= start < int(bounds[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    return 0


@pytest.fixture
def _huge_pages_on_demand():
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if PAGE > 2 << 20:
        pytest.skip(f"huge pages of {PAGE} bytes: the test would take {SIZE}")
    if not enabled.exists() or "[madvise]" not in enabled.read_text():
        pytest.skip("this kernel has no huge pages, or uses them without being asked")


@pytest.mark.usefixtures("_huge_pages_on_demand")
def test_new_memory_moves_and_keeps_its_content():
    content = bytes(range(256)) * (SIZE // 256)
    before = huge_pages.large_mappings()
    new = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    new[:] = content
    thread = huge_pages.move_new_mappings(before)
    assert thread is not None
    thread.join()
    if (moved := _bytes_on_huge_pages(ctypes.addressof(ctypes.c_char.from_buffer(new)))) == 0:
        pytest.skip("the kernel refuses (older than Linux 6.1, or forbidden for this process)")
    assert moved >= SIZE - 2 * PAGE
    assert new[:] == content


@pytest.mark.usefixtures("_huge_pages_on_demand")
def test_a_hole_in_new_memory_stays_empty():
    before = huge_pages.large_mappings()
    new = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    new[: SIZE // 2] = b"a" * (SIZE // 2)
    new[SIZE // 2 :: PAGE // 2] = b"a" * 16  # two pages of each huge one
    start = ctypes.addressof(ctypes.c_char.from_buffer(new))
    thread = huge_pages.move_new_mappings(before)
    assert thread is not None
    thread.join()
    with Pagemap() as pages:
        assert pages.own(start, start + SIZE // 2).all()
        assert pages.own(start + SIZE // 2 + PAGE, start + SIZE).mean() < 0.1


def test_all_of_it_moves_where_the_system_does_not_say_what_is_in_use(monkeypatch, tmp_path):
    monkeypatch.setattr(pagemap, "_PAGEMAP", tmp_path / "none")
    assert list(huge_pages._filled(range(2, 6, 2))) == [2, 4]


def test_nothing_new_needs_no_thread():
    assert huge_pages.move_new_mappings(huge_pages.large_mappings()) is None


@pytest.mark.skipif(huge_pages.page_bytes() is None, reason="this system has no huge pages")
def test_new_memory_stays_where_it_is_where_no_thread_starts(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    before = huge_pages.large_mappings()
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
        assert huge_pages.large_mappings() > before
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert huge_pages.move_new_mappings(before) is None


@pytest.mark.parametrize("capacity", [3, 100_000])
def test_zeros_are_arrays_of_their_own(capacity):
    arrays = huge_pages.zeros(6, (1, 3, capacity, 8), np.float32)
    assert [(array.shape, array.dtype, array.any()) for array in arrays] == [
        ((1, 3, capacity, 8), np.float32, False)
    ] * 6
    for i, array in enumerate(arrays):
        array[:] = i
    assert [(array.min(), array.max()) for array in arrays] == [(i, i) for i in range(6)]
    if capacity > 3 and huge_pages.page_bytes() == 2 << 20:
        assert arrays[0].ctypes.data % (2 << 20) == 0


@pytest.fixture
def _of_another_size(monkeypatch, tmp_path, request):
    monkeypatch.setattr(huge_pages, "_SIZE", tmp_path / "hpage_pmd_size")
    if request.param:
        (tmp_path / "hpage_pmd_size").write_text(f"{request.param}\n")
    huge_pages.page_bytes.cache_clear()
    yield
    huge_pages.page_bytes.cache_clear()


@pytest.mark.parametrize("_of_another_size", [1 << 16, 32 << 20, None], indirect=True)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others have no huge pages to ask for")
def test_memory_is_asked_for_in_huge_pages_where_it_has_two_of_the_systems_size(_of_another_size):
    size = huge_pages.page_bytes()
    arrays = huge_pages.zeros(8, (1 << 20,), np.int8)
    if size == 1 << 16:
        assert arrays[0].ctypes.data % size == 0
    else:
        assert [array.base for array in arrays] == [None] * 8  # numpy's own
    assert all(size is not None and end - start >= 2 * size for start, end in huge_pages.large_mappings())


@pytest.mark.usefixtures("_huge_pages_on_demand")
def test_large_zeros_are_on_huge_pages_as_soon_as_they_are_written():
    arrays = huge_pages.zeros(8, (SIZE // 8,), np.int8)
    before = _bytes_on_huge_pages(arrays[0].ctypes.data)  # of a neighbour, which the kernel counts with them
    for array in arrays:
        array[0] = 1
    if (there := _bytes_on_huge_pages(arrays[0].ctypes.data)) == before:
        pytest.skip("the kernel refuses (forbidden for this process, or it has none left)")
    assert there - before == 8 * PAGE


@pytest.mark.skipif(huge_pages.page_bytes() is None, reason="elsewhere the arrays are numpy's own")
def test_more_zeros_than_addresses_are_no_memory():
    with pytest.raises(MemoryError, match=r"Cannot map \d+ bytes: .*Cannot allocate memory"):
        huge_pages.zeros(2, (1 << 60,), np.int8)

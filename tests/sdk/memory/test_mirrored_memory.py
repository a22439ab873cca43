"""Mirrored memory: what is written into one place is in all that show it, and it goes with the last array."""

import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgelm.memory.mirrored_memory import MirroredBuffers, Row

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="mirrored memory is Linux's")


def test_places_show_the_rows_that_they_are_told_to() -> None:
    buffers = MirroredBuffers([Row((2, PAGE // 32, 16), np.float32), Row((1, PAGE), np.int8)], 3, 5)
    floats_RKCH, bytes_RX = buffers.buffers
    assert (floats_RKCH.shape, floats_RKCH.dtype) == ((3, 2, PAGE // 32, 16), np.float32)
    assert (bytes_RX.shape, bytes_RX.dtype) == ((3, 1, PAGE), np.int8)
    assert not floats_RKCH.any()
    for row in range(3):
        floats_RKCH[row], bytes_RX[row] = row + 1, -row - 1
    for order in ([0, 1, 2, 1], [2], [0, 1, 2, 2, 0], [1, 1, 1, 1, 1]):
        floats, small = buffers.show(order)
        assert floats[:, 1, -1, 15].tolist() == [row + 1 for row in order]
        assert small[:, 0, -1].tolist() == [-row - 1 for row in order]
    floats[3, 0, 5] = 7.0
    assert floats_RKCH[1, 0, 5].tolist() == floats[0, 0, 5].tolist() == [7.0] * 16
    assert floats_RKCH[[0, 2], 0, 5].tolist() == [[1.0] * 16, [3.0] * 16]


def test_memory_is_given_back_with_the_last_array_that_looks_at_it() -> None:
    def mappings() -> int:
        return sum("memfd:edgelm" in line for line in Path("/proc/self/maps").read_text().splitlines())

    gc.collect()  # what earlier tests have left open
    before, descriptors = mappings(), len(os.listdir("/proc/self/fd"))
    buffers = MirroredBuffers([Row((1, PAGE), np.int8)], 2, 3)
    view = buffers.show([1, 0, 1])[0][2]
    assert mappings() > before
    del buffers
    view[:] = 1
    del view
    gc.collect()
    assert (mappings(), len(os.listdir("/proc/self/fd"))) == (before, descriptors)


COMPUTES_AT_THE_END = """
import mmap
import weakref
import numpy as np
from edgelm.memory.mirrored_memory import MirroredBuffers, Row
class Engine: ...
engine = Engine()
weakref.finalize(engine, lambda: print(memory.show([1])[0].sum()))  # as its thread does, until it is ended here
memory = MirroredBuffers([Row((mmap.PAGESIZE // 4,), np.float32)], 2, 1)
"""


def test_at_the_end_of_a_program_the_memory_is_there_for_who_still_computes_in_it() -> None:
    ended = subprocess.run([sys.executable, "-c", COMPUTES_AT_THE_END], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0.0\n", "")


def test_rows_that_are_not_whole_pages_are_refused() -> None:
    with pytest.raises(OSError, match=r"12 bytes are not whole pages of \d+\."):
        MirroredBuffers([Row((3,), np.float32)], 1, 2)


def test_addresses_that_the_system_has_not_are_an_error_and_leave_nothing() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Cannot map memory"):
        MirroredBuffers([Row((PAGE,), np.int8)], 1, sys.maxsize // (2 * PAGE))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_system_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="needs memfd_create"):
        MirroredBuffers([Row((PAGE,), np.int8)], 1, 2)

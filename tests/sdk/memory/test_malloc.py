"""The allocator gives memory back where it is told to; measured in processes of their own, as what it is told stays."""

import gc
import platform
import subprocess
import sys

import pytest

from edgelm.memory import malloc

# Holes between small arrays that stay: 32 arrays of 4 MB, freed, behind a larger one that raised glibc's own bound.
# Still smaller ones all find room in what compiling numpy leaves, where nobody had, and there are no holes.
PROGRAM = """
import mmap
import sys
import numpy as np
from edgelm.memory.malloc import map_arrays_from

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE / 2**20

if sys.argv[1] == "told":
    map_arrays_from(1 << 20)
np.ones(30 << 20, np.uint8)
before = resident()
pairs = [(np.ones(4 << 20, np.uint8), np.ones(1 << 17, np.uint8)) for _ in range(32)]
kept = [small for _, small in pairs]
del pairs
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_arrays_leave_memory_where_small_ones_between_them_stay() -> None:
    grown = {}
    for how in ("told", "left alone"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        grown[how] = float(done.stdout)
    # 4 MB of small arrays stay; 128 MB of holes do where nobody told the allocator.
    assert grown["told"] < 10
    assert grown["left alone"] > 50


# 100 MB below one that stays.
FREED = """
import gc
import mmap
import sys
from edgelm.memory.malloc import Returned, return_freed_memory

class Owner(Returned):
    pass

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE / 2**20

before = resident()
blocks = [b"x" * (100_000 + i) for i in range(1000)]
last = blocks[-1]
if sys.argv[1] in ("with its owner", "with its cycle"):
    owner = Owner()
    owner.blocks = blocks
    if sys.argv[1] == "with its cycle":
        owner.itself = owner
    del blocks, owner
    gc.collect()
else:
    del blocks[:-1]
if sys.argv[1] == "told":
    return_freed_memory()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_given_back() -> None:
    grown = {}
    for how in ("told", "with its owner", "with its cycle", "left alone"):
        done = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True)
        grown[how] = float(done.stdout)
    assert grown["told"] < 10
    assert grown["with its owner"] < 10
    assert grown["with its cycle"] < 10
    assert grown["left alone"] > 50


def test_what_is_large_is_whole_for_whatever_ends_with_it() -> None:
    class Large(malloc.Returned):
        content = ""

    class User:
        def __init__(self, large: Large) -> None:
            self.large, self.itself = large, self

        def __del__(self) -> None:
            seen.append(self.large.content)

    def make() -> None:
        large = Large()
        large.content = "here"
        User(large)  # of a cycle, so that Python ends both, in the order in which they were made

    seen: list[str] = []
    make()
    gc.collect()
    assert seen == ["here"]


def test_what_outlives_the_modules_at_exit_ends_without_a_word() -> None:
    # What something holds of them is emptied at exit: names of the module are None before the last of them ends.
    program = "import sys; from edgelm.memory import malloc; malloc.z = malloc.Returned(); sys.kept = malloc"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "c_library", object)  # as musl's library: it has neither function
    malloc.return_freed_memory()
    malloc.map_arrays_from(1 << 20)

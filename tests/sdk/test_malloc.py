"""The allocator gives arrays back when it was told to; measured in a process of its own, since the setting stays."""

import platform
import subprocess
import sys

import pytest

# Holes between small arrays that stay: 32 arrays of 4 MB, freed, behind a larger one that raised glibc's own bound.
PROGRAM = """
import sys
import numpy as np
from edgelm.memory.malloc import map_arrays_from

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "told":
    map_arrays_from(1 << 20)
np.ones(30 << 20, np.uint8)
before = resident()
pairs = [(np.ones(4 << 20, np.uint8), np.ones(1 << 15, np.uint8)) for _ in range(32)]
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
    # 1 MB of small arrays stays; 128 MB of holes do where nobody told the allocator.
    assert grown["told"] < 10
    assert grown["left alone"] > 100

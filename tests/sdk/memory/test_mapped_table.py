import re
import sys
from pathlib import Path

import numpy as np
import pytest

from edgelm.memory.mapped_table import MappedTable

NUMBERS = np.random.default_rng(0).integers(0, 255, (512, 4096), np.uint8)
BEFORE = 5000  # bytes before the table, which begins within a page


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx.data").write_bytes(bytes(BEFORE) + NUMBERS.tobytes())
    return tmp_path / "model.onnx.data"


def resident(path: Path) -> int:
    """How many kB of a mapped file are in this process's memory."""
    mappings = Path("/proc/self/smaps").read_text()
    return sum(map(int, re.findall(rf" {re.escape(str(path))}\n(?:[A-Z].*\n)*?Rss: +(\d+) kB", mappings)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_was_read_is_given_back_and_read_again(path: Path) -> None:
    table = MappedTable(path, BEFORE, np.uint8, NUMBERS.shape)
    np.testing.assert_array_equal(table.array, NUMBERS)
    assert resident(path) >= NUMBERS.nbytes >> 10
    table.give_back()
    assert resident(path) == 0
    np.testing.assert_array_equal(table.array, NUMBERS)


def test_a_table_of_floats_is_what_the_file_has(tmp_path: Path) -> None:
    numbers = np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 20)
    numbers.tofile(tmp_path / "model.onnx.data")
    np.testing.assert_array_equal(MappedTable(tmp_path / "model.onnx.data", 80, np.float32, (2, 20)).array, numbers[1:])


def test_a_table_cannot_be_written_to(path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        MappedTable(path, BEFORE, np.uint8, NUMBERS.shape).array[0] = 1


def test_a_file_that_ends_before_the_table_is_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="mmap length is greater than file size"):
        MappedTable(path, BEFORE + 1, np.uint8, NUMBERS.shape)

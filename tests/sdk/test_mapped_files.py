import re
import sys
from pathlib import Path

import numpy as np
import pytest

import edgelm
from edgelm.memory import mapped_files
from edgelm.memory.mapped_files import give_back_mapped_files
from edgelm.runtime import onnx_runtime
from edgelm.testing import tiny_model_path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

NUMBERS = np.random.default_rng(0).integers(0, 255, 1 << 20, np.uint8)


def resident(path: Path) -> int:
    """How many kB of a mapped file are in this process's memory."""
    mappings = Path("/proc/self/smaps").read_text()
    return sum(map(int, re.findall(rf" {re.escape(str(path))}\n(?:[A-Z].*\n)*?Rss: +(\d+) kB", mappings)))


def mapped(path: Path) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
    """Map a file as ONNX Runtime does: writable, for this process alone. All of it is read."""
    NUMBERS.tofile(path)
    array = np.memmap(path, np.uint8, mode="c")
    assert array.sum() == NUMBERS.sum()
    assert resident(path) == 1024
    return array


def test_what_was_only_read_leaves_memory_and_is_read_again(tmp_path: Path) -> None:
    array = mapped(tmp_path / "model.onnx.data")
    give_back_mapped_files(tmp_path)
    assert resident(tmp_path / "model.onnx.data") == 0
    np.testing.assert_array_equal(array, NUMBERS)


def test_what_loading_a_model_has_read_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[Path] = []
    monkeypatch.setattr(onnx_runtime, "give_back_mapped_files", given_back.append)
    edgelm.load(tiny_model_path())
    assert given_back == [tiny_model_path()]


def test_a_link_to_the_folder_names_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    array = mapped(folder / "model.onnx.data")
    give_back_mapped_files(tmp_path / "link")
    assert resident(folder / "model.onnx.data") == 0
    np.testing.assert_array_equal(array, NUMBERS)


def test_a_mapping_that_was_written_to_stays_as_it_is(tmp_path: Path) -> None:
    array = mapped(tmp_path / "model.onnx.data")
    array[5000] = NUMBERS[5000] ^ 1
    give_back_mapped_files(tmp_path)
    assert array[5000] == NUMBERS[5000] ^ 1
    assert resident(tmp_path / "model.onnx.data") == 1024


def test_files_of_other_folders_stay(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    array = mapped(other / "model.onnx.data")
    give_back_mapped_files(tmp_path)
    assert resident(other / "model.onnx.data") == 1024
    assert array is not None


def test_little_is_not_worth_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_files, "Pagemap", lambda: pytest.fail("it was looked for"))
    numbers = NUMBERS[: 1 << 16]
    numbers.tofile(tmp_path / "model.onnx.data")
    array = np.memmap(tmp_path / "model.onnx.data", np.uint8, mode="c")
    assert array.sum() == numbers.sum()
    give_back_mapped_files(tmp_path)
    assert resident(tmp_path / "model.onnx.data") == 64

"""How many cores there are, as each system says it."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from edgelm.runtime import cores


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux says it")
@pytest.mark.parametrize(
    ("siblings", "allowed", "expected"),
    [
        (["0-1", "0-1", "2-3", "2-3"], {0, 1, 2, 3}, 2),
        (["0-1", "0-1", "2-3", "2-3"], {0, 1}, 1),
        (["0,2", "1,3", "0,2", "1,3"], {0, 1, 3}, 2),
        (["0", "1", "2"], {0, 1, 2}, 3),
        (["0-1"], {0, 1, 2}, 3),  # not all say it
    ],
)
def test_a_core_counts_once_however_many_threads_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, siblings: list[str], allowed: set[int], expected: int
) -> None:
    for number, text in enumerate(siblings):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{text}\n")
    monkeypatch.setattr(cores, "_PROCESSORS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    assert cores.physical_cores() == expected


def test_windows_has_a_record_for_each_core() -> None:
    def record(mask: int, groups: int = 1) -> bytes:
        relationship = struct.pack("<BB20xH", 1, 0, groups) + groups * struct.pack("<QH6x", mask, 0)
        return struct.pack("<II", 0, 8 + len(relationship)) + relationship

    assert cores.of_windows(record(0b11) + record(0b1100, groups=2) + record(0b10000)) == 3
    with pytest.raises(struct.error):
        cores.of_windows(record(0b11) + b"\0\0\0")


def test_a_system_that_does_not_say_its_cores_has_as_many_as_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    for system in ("win32", "darwin", "sunos5"):
        monkeypatch.setattr(sys, "platform", system)
        assert cores.physical_cores() == 7

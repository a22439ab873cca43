"""`edgelm du` counts every file below the library's folder and that of sessions, once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from command_line import invoke

from edgelm.files.held_folder import held_folder
from edgelm.library.disk_use import disk_use, size_of
from edgelm.library.library import Library

FILES = {
    "models/small/model.onnx": 3_000_000,
    "models/.edgelm-tmp-1-0123abcd-small/model.onnx": 50,
    "sources/small/model.gguf": 5_000_000,
    "downloads/other/model.gguf.part": 70,
    "sessions/holidays/cache.npz": 2_000_000,
    "sessions/holidays/conversation.json": 100,
    "calibration/0123abcd/layer-00000.npz": 400,
    "known-tokenizers/0123abcd-0.23": 0,
    "locks/small.lock": 0,
    "chat_history": 9,
}


@pytest.fixture
def library(own_library: Path) -> Library:
    for name, size in FILES.items():
        path = own_library / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return Library()


def test_everything_is_counted_once_the_largest_first(library):
    found = [(use.kind, use.name, use.size) for use in disk_use(library)]
    assert found == [
        ("source", "small", 5_000_000),
        ("package", "small", 3_000_000),
        ("session", "holidays", 2_000_100),
        ("cache", "calibration", 400),
        ("download", "other", 70),
        ("leftover", ".edgelm-tmp-1-0123abcd-small", 50),
        ("other", "chat_history", 9),
        ("cache", "known-tokenizers", 0),
    ]
    assert sum(size for *_, size in found) == sum(FILES.values())


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG is the convention of other systems")
def test_sessions_in_a_folder_of_their_own_are_counted_too(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGELM_HOME")
    for name, file in (("XDG_DATA_HOME", "models/a/model.onnx"), ("XDG_STATE_HOME", "sessions/b/cache.npz")):
        monkeypatch.setenv(name, str(tmp_path / name))
        path = tmp_path / name / "edgelm" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"xy")
    assert [(use.kind, use.name, use.size) for use in disk_use(Library())] == [("package", "a", 2), ("session", "b", 2)]


def test_what_stopped_calibrations_have_left_can_be_removed(library):
    clear = ["cache", "clear", "--calibration"]
    refused = invoke(*clear, "holidays")
    assert (refused.exit_code, "--calibration is not of a session; leave the names out." in refused.stderr) == (2, True)

    (library.calibration_path / ".DS_Store").touch()  # of macOS' file manager
    assert invoke(*clear).stderr == "Freed 0.4 kB.\n"
    assert [path.name for path in library.calibration_path.iterdir()] == [".DS_Store"]
    assert (library.root / "sessions/holidays/cache.npz").is_file()
    assert invoke(*clear).exit_code == 0  # again, of nothing


def test_what_a_calibration_keeps_that_runs_stays(library):
    with held_folder(library.calibration_path / "0123abcd"):
        result = invoke("cache", "clear", "--calibration")
        assert result.stderr == "Freed 0.0 kB.\nCalibrations that run now keep theirs: 1.\n"
        assert (library.calibration_path / "0123abcd/layer-00000.npz").is_file()


def test_links_take_no_room(tmp_path):
    (tmp_path / "large").write_bytes(b"x" * 1000)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.symlink(tmp_path / "large", folder / "file")
    os.symlink(tmp_path, folder / "circle")
    (folder / "own").write_bytes(b"abc")
    assert size_of(folder) == 3


@pytest.mark.skipif(os.name == "nt", reason="gives a file room for all of its length")
def test_pieces_that_are_missing_take_no_room(tmp_path):
    with (tmp_path / "model.gguf.pieces").open("wb") as file:
        file.write(b"x" * 100_000)
        file.truncate(1 << 30)
    assert size_of(tmp_path) < 1 << 20
    os.truncate(tmp_path / "model.gguf.pieces", 100_000)
    assert size_of(tmp_path) <= 100_000


def test_du_prints_a_table_with_the_sum_and_the_free_room(library):
    result = invoke("du")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[:2] == [["KIND", "NAME", "SIZE"], ["source", "small", "5.0", "MB"]]
    assert rows[-1] == ["together", "10.0", "MB"]
    assert f"{library.root}: " in result.stderr
    assert "are free on its disk" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_a_name_writes_no_lines_of_the_table_and_rings_no_bell(library):
    (library.root / "downloads" / "a\npackage   b  1 MB\x07").write_bytes(b"x")
    assert "download  a⏎package   b  1 MB" in invoke("du").stdout
    assert "\x07" not in invoke("du").stdout


def test_du_as_json_is_for_programs(library):
    rows = json.loads(invoke("du", "--json").stdout)
    assert rows[0] == {
        "kind": "source",
        "name": "small",
        "path": str(library.root / "sources" / "small"),
        "size": 5_000_000,
    }


def test_du_of_nothing_says_so(own_library):
    result = invoke("du")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"There is nothing in {own_library}.\n"
    assert invoke("du", "--json").stdout == "[]\n"

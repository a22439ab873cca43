"""The recording of the chat: the script's pieces, on the tiny model."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

from edgelm.testing import tiny_model_path

pytest.importorskip("pyte")
pytest.importorskip("prompt_toolkit")

TOOL = Path(__file__).parents[2] / "docs" / "tools" / "record_chat.py"
COLUMNS, ROWS = 70, 16


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_chat", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["record_chat"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_chat_is_recorded_and_drawn(tool: ModuleType) -> None:
    edgelm = str(Path(sys.executable).with_name("edgelm"))
    command = [edgelm, "chat", str(tiny_model_path()), "--max-new-tokens", "8"]
    recording = tool.record(command, ("Hello there", "/tokens"), COLUMNS, ROWS)

    header, *events = (json.loads(line) for line in tool.cast(recording).splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, COLUMNS, ROWS)
    times = [at for at, kind, _ in events if kind == "o"]
    assert len(times) == len(events) > 10
    assert times == sorted(times)

    last = tool.frames(recording)[-1][1]
    shown = re.sub(r"<[^>]*>", "", "".join(last))  # the terminal breaks a long line anywhere
    assert f"edgelm chat {tiny_model_path()} --resume hello-there" in shown
    picture = tool.draw(recording)
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert ">>> Hello there" in texts
    assert any(text and text.startswith("     context ") for text in texts)
    assert any(text and "· context " in text for text in texts)  # the status line
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
    ids = {element.get("id") for element in root.iter("{http://www.w3.org/2000/svg}g")}
    assert {use.get("href", "")[1:] for use in root.iter("{http://www.w3.org/2000/svg}use")} <= ids


def test_pieces_that_end_inside_a_character_and_long_pauses_are_mended(tool: ModuleType) -> None:
    data = "é".encode()
    pieces = list(tool._shortened([(5.0, b"a"), (65.0, data[:1]), (65.5, data[1:] + b"b")]))
    assert pieces == [(0.0, "a"), (pytest.approx(tool._LONGEST_PAUSE + 0.5), "éb")]


def test_a_program_that_ends_too_early_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"The prompt did not come, but:\n.*no chat here"):
        tool.record(["sh", "-c", "echo no chat here"], ("Hello",), COLUMNS, ROWS)


def test_the_picture_in_the_docs_is_small() -> None:
    assert (TOOL.parent.parent / "pictures" / "chat.svg").stat().st_size < 300_000

"""Where an answer ends in the middle of a call, of a marker, or of what is no call."""

import json

import pytest

from edgelm.completion import Chunk, FinishReason
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import FORMATS, ToolFormat

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def row(name: str) -> ToolFormat:
    return next(format_ for format_ in FORMATS if format_.name == name)


def taken(
    format_: ToolFormat, text: str, reason: FinishReason, names: tuple[str, ...] = ()
) -> tuple[str, list[str | None], str | None]:
    """Return what is shown of an answer that comes letter by letter, the tools that it calls, and its reason."""
    parser = ToolCallParser(format_, names)
    chunks = [Chunk(text=char, token_ids=(1,)) for char in text[:-1]]
    chunks.append(Chunk(text=text[-1], token_ids=(1,), finish_reason=reason))
    read = [parser.take(chunk) for chunk in chunks]
    names = [delta.name for chunk in read for delta in chunk.tool_calls if delta.id]
    return "".join(chunk.text for chunk in read), names, read[-1].finish_reason


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        (CALL, "stop", ("", ["f"], "tool_calls")),
        (CALL[:-14], "length", ("", ["f"], "length")),  # whose arguments are cut off
        (CALL + "\n" + CALL[:20], "length", ("", ["f"], "length")),  # the second call is
        ("Hm. " + CALL[:20], "length", ("Hm. " + CALL[:20], [], "length")),  # no call is known
        ("Hm. " + CALL[:5], "length", ("Hm. " + CALL[:5], [], "length")),
        (CALL + "Done. <tool", "stop", ("Done. <tool", ["f"], "tool_calls")),
        (CALL + "\n", "stop", ("\n", ["f"], "tool_calls")),
    ],
)
def test_an_answer_that_ends_anywhere_keeps_its_text_its_calls_and_its_reason(
    text: str, reason: FinishReason, expected: tuple[str, list[str | None], str]
) -> None:
    assert taken(row("hermes"), text, reason) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {}, "name": ""}</tool_call>'),
        ("mistral-args", "[TOOL_CALLS][ARGS]{}"),
        ("mistral-args", "[TOOL_CALLS] [CALL_ID]x[ARGS]{}"),
        ("harmony", " to=functions.<|message|>{}"),
    ],
)
def test_a_call_of_a_tool_without_a_name_is_text(name: str, text: str) -> None:
    assert taken(row(name), text, "stop") == (text, [], "stop")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('\n {"name": "f", "parameters": {}}', ("", ["f"], "tool_calls")),
        ('Well: {"name": "f", "parameters": {}}', ('Well: {"name": "f", "parameters": {}}', [], "stop")),
        (
            '{"name": "Anna"} {"name": "f", "parameters": {}}',  # begins with what is no call
            ('{"name": "Anna"} {"name": "f", "parameters": {}}', [], "stop"),
        ),
        ('<|python_tag|>{"name": "g", "parameters": {}}', ("", ["g"], "tool_calls")),  # the marker says that it is one
        ('{"name": "f", "parameters": {}}{"name": "g"}', ('{"name": "g"}', ["f"], "tool_calls")),
    ],
)
def test_an_answer_that_is_json_is_a_call_where_it_begins_with_that_of_a_tool(
    text: str, expected: tuple[str, list[str | None], str]
) -> None:
    assert taken(row("llama3"), text, "stop", names=("f",)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Hm. \n<tool_call>no</tool_call> x",
        "<tool_call>\n<tool_call> \n{ no }</tool_call>",
        '<tool_call>{"name": "f"',
        '<tool_call>{"name": "\\x", "arguments": {}}</tool_call>',  # an escape that JSON does not have
        "<tool_call>" + '{"a":' * 2000 + "1" + "}" * 2000 + "</tool_call>",  # deeper than Python reads
    ],
)
def test_what_only_begins_as_a_call_is_shown_whole(text: str) -> None:
    assert taken(row("hermes"), text, "stop") == (text, [], "stop")


def test_arguments_are_handed_on_as_the_model_wrote_them() -> None:
    parser = ToolCallParser(row("hermes"))
    arguments = '{"n": [-1.5e+3, {"a": []}], "s": "漢\\"}"}'
    _, deltas = parser.push(f'<tool_call>{{"name": "f", "arguments": {arguments}, "id": {{"a": 1}}}}</tool_call>')
    assert "".join(delta.arguments for delta in deltas) == arguments
    json.loads(arguments)

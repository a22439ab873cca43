"""Where an answer ends in the middle of a call, of a marker, or of what is no call."""

import json

import pytest
from tool_families import row

from edgelm.completion import Chunk, FinishReason
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import ToolFormat

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


def taken(
    format_: ToolFormat, text: str, reason: FinishReason, names: tuple[str, ...] = ()
) -> tuple[str, list[str | None], str | None]:
    """Return what is shown of an answer that comes letter by letter, the tools that it calls, and its reason."""
    parser = ToolCallParser(format_, {name: {} for name in names})
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
        (CALL[:-14], "stop", ("", ["f"], "stop")),  # by a stop string: what has come of the arguments is no JSON
        (CALL + "\n" + CALL[:-14], "stop", ("", ["f", "f"], "stop")),
        (CALL[:-13], "stop", ("", ["f"], "tool_calls")),  # a brace too few, behind arguments that are whole
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
        ('{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}', ("", ["f", "f"], "tool_calls")),
        ('{"name": "f", "parameters": {}}{"name": "g"}', ('{"name": "g"}', ["f"], "tool_calls")),
    ],
)
def test_an_answer_that_is_json_is_a_call_where_it_begins_with_that_of_a_tool(
    text: str, expected: tuple[str, list[str | None], str]
) -> None:
    assert taken(row("llama3"), text, "stop", names=("f",)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('```json\n{\n  "name": "f",\n  "arguments": {}\n}\n```', ("", ["f"], "tool_calls")),
        ('```json\n{"arguments": {}, "name": "f"}\n```', ('```json\n{"arguments": {}, "name": "f"}\n```', [], "stop")),
        ('\n```json\n{"name": "f", "arguments": {}}\n```\nDone.', ("\nDone.", ["f"], "tool_calls")),
        ('```json\n{"name": "Anna"}\n```\nDone.', ('```json\n{"name": "Anna"}\n```\nDone.', [], "stop")),
        ('```json\n{"names": []}\n```', ('```json\n{"names": []}\n```', [], "stop")),
        ("```json\n[1]\n```", ("```json\n[1]\n```", [], "stop")),
        ("```js\nf()\n```", ("```js\nf()\n```", [], "stop")),
        ("```json", ("```json", [], "stop")),
        (f"So: ```json\n{CALL[11:-12]}\n```", (f"So: ```json\n{CALL[11:-12]}\n```", [], "stop")),  # an example
        (f"{CALL}\n```json\n{{}}\n```", ("\n```json\n{}\n```", ["f"], "tool_calls")),
    ],
)
def test_an_answer_that_begins_with_a_block_of_json_is_a_call_where_that_is_one_of_a_tool(
    text: str, expected: tuple[str, list[str | None], str]
) -> None:
    assert taken(row("hermes"), text, "stop", names=("f",)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Hm. \n<tool_call>no</tool_call> x",
        "Hm. <tool_call>\n</tool_call> x",
        "<tool_call>\n<tool_call> \n{ no }</tool_call>",
        '<tool_call>{"name": "f"',
        '<tool_call>{"name": "\\x", "arguments": {}}</tool_call>',  # an escape that JSON does not have
        "<tool_call>" + '{"a":' * 2000 + "1" + "}" * 2000 + "</tool_call>",  # deeper than Python reads
    ],
)
def test_what_only_begins_as_a_call_is_shown_whole(text: str) -> None:
    assert taken(row("hermes"), text, "stop") == (text, [], "stop")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral-args", "[TOOL_CALLS] f [ARGS] \n{}"),
        ("mistral-args", "[TOOL_CALLS]f [CALL_ID]x[ARGS] {}"),
        ("harmony", " to=functions.f <|message|>\n{}"),
        ("harmony", " to=functions.f<|channel|>commentary json<|message|> {}"),
    ],
)
def test_what_stands_around_a_name_is_passed_over(name: str, text: str) -> None:
    assert taken(row(name), text, "stop") == ("", ["f"], "tool_calls")


def test_what_follows_the_arguments_of_a_named_call_is_text() -> None:
    assert taken(row("mistral-args"), "[TOOL_CALLS]f[ARGS]{} and {more}", "stop") == (
        " and {more}", ["f"], "tool_calls"
    )  # fmt: skip


@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_arguments_are_handed_on_as_the_model_wrote_them(key: str) -> None:
    parser = ToolCallParser(row("hermes"))
    arguments = json.dumps({"n": [-1.5e30, {"a": []}], "s": '漢"}', "p": "C:\\", "q": "}"}, ensure_ascii=False)
    text = f'<tool_call>{{"name": "f", "{key}": {arguments}, "id": {{"a": 1}}}}</tool_call>'
    deltas = [delta for char in text for delta in parser.push(char)[1]]
    assert "".join(delta.arguments for delta in deltas) == arguments
    assert len(deltas) == len(arguments)  # each letter at once


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('{"arguments": {"a": "漢\ny"}, "name": "f"}', {"a": "漢\ny"}),  # a line break that JSON would escape
        ('{"name": "f", "arguments": {"a": 1}]', {"a": 1}),  # another bracket at the end
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f", "arguments": [{"a": 1}]}', [{"a": 1}]),
        ('{"name": "f", "arguments": ""}', {}),
    ],
)
def test_slips_are_forgiven_at_the_end_of_the_object_too(text: str, arguments: object) -> None:
    parser = ToolCallParser(row("hermes"))
    shown, deltas = parser.push(f"<tool_call>{text}</tool_call> x")
    assert shown == " x"
    assert [delta.name for delta in deltas if delta.id] == ["f"]
    written = "".join(delta.arguments for delta in deltas)
    assert json.loads(written) == arguments
    assert "\\u" not in written


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral-args", "[TOOL_CALLS]" + "f" * 257),
        ("mistral-args", "[TOOL_CALLS]two\nlines"),
        ("hermes", '<tool_call>{"a": é'),
    ],
)
def test_what_turned_out_to_be_no_call_is_shown_at_once(name: str, text: str) -> None:
    assert ToolCallParser(row(name)).push(text) == (text, ())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[TOOL_CALLS]two\nlines[ARGS]{}", None),
        ("[TOOL_CALLS]" + "f" * 257 + "[ARGS]{}", None),
        ("[TOOL_CALLS]" + "f" * 256 + "[ARGS]{}", "f" * 256),
    ],
)
def test_what_can_be_a_name_is_the_same_whatever_the_pieces(text: str, name: str | None) -> None:
    for pieces in ([text], list(text)):
        parser = ToolCallParser(row("mistral-args"))
        parts = [*map(parser.push, pieces), parser.flush()]
        assert [delta.name for _, deltas in parts for delta in deltas if delta.id] == ([name] if name else [])
        assert "".join(shown for shown, _ in parts) == ("" if name else text)


def test_without_names_every_object_with_one_is_a_call() -> None:
    assert taken(row("llama3"), '{"name": "f", "parameters": {}}', "stop") == ("", ["f"], "tool_calls")

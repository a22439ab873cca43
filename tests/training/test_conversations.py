"""Conversations: every form is read, and what is none is named with its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from edgelm.errors import DataError
from edgelm_training.conversations.conversations import Conversation, read_conversations

HI = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"})
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL_CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parse(values: Any) -> Conversation:
    Path("c.jsonl").write_text(json.dumps(values) + "\n")
    (conversation,) = read_conversations(["c.jsonl"])
    return conversation


FORMS: dict[str, tuple[Any, Sequence[Any], set[int]]] = {
    "messages": ({"messages": HI}, HI, {1}),
    "messages with a system": ({"messages": [SYSTEM, *HI, *HI]}, [SYSTEM, *HI, *HI], {2, 4}),
    "messages with weights": (
        {"messages": [*HI, HI[0], {**HI[1], "weight": 0}, HI[0], {**HI[1], "weight": 1}]},
        [*HI, *HI, *HI],
        {1, 5},
    ),
    "messages that are trained": (
        {"messages": [HI[0], {**HI[1], "train": False}, HI[0], {**HI[1], "train": True, "weight": 1}]},
        [*HI, *HI],
        {3},
    ),
    "messages in training": (
        {"messages": [HI[0], {**HI[1], "training": False}, HI[0], {**HI[1], "training": True, "train_detail": []}]},
        [*HI, *HI],
        {3},
    ),
    "messages with a system beside them": ({"system": "Be brief.", "messages": [*HI, *HI]}, [SYSTEM, *HI, *HI], {2, 4}),
    "messages with a system of their own": ({"system": "Go on.", "messages": [SYSTEM, *HI]}, [SYSTEM, *HI], {2}),
    "messages in parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                HI[1],
            ]
        },
        HI,
        {1},
    ),
    "messages of a developer": ({"messages": [{**SYSTEM, "role": "developer"}, *HI]}, [SYSTEM, *HI], {2}),
    "messages that call tools": (
        {"messages": [HI[0], {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}]},
        [HI[0], {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}],
        {1},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        HI,
        {1},
    ),
    "ShareGPT with a system": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}],
        },
        [SYSTEM, *HI],
        {2},
    ),
    "ShareGPT with an empty system": (
        {"system": "", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
        HI,
        {1},
    ),
    "ShareGPT with a system turn": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello!"},
            ]
        },
        [SYSTEM, *HI],
        {2},
    ),
    "ShareGPT with calls": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "function_call", "value": '[{"name": "stop"}]'},
                {"from": "function_call", "value": "add(1)"},
            ]
        },
        [
            HI[0],
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "2"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "stop"}}],
            },
            {"role": "assistant", "content": "add(1)"},
        ],
        {1, 3, 4},
    ),
    "conversations in OpenAI's words": ({"conversations": HI}, HI, {1}),
    "ShareGPT with weights": (
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello!", "weight": 0},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello!", "weight": 1},
                {"from": "human", "value": "Hi", "train": False},
                {"from": "gpt", "value": "Hello!", "train": False},
            ]
        },
        [*HI, *HI, *HI],
        {3},
    ),
    "Alpaca": ({"instruction": "Hi", "input": "", "output": "Hello!"}, HI, {1}),
    "Alpaca with an input": (
        {"instruction": "Sum.", "input": "1 2", "output": "3", "system": "Be brief."},
        [SYSTEM, {"role": "user", "content": "Sum.\n\n1 2"}, {"role": "assistant", "content": "3"}],
        {2},
    ),
    "Alpaca with a history": (
        {"instruction": "Bye", "output": "So long.", "history": [["Hi", "Hello!"]], "system": "Be brief."},
        [SYSTEM, *HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So long."}],
        {2, 4},
    ),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello!"}, HI, {1}),
    "KTO's good answer": ({"prompt": "Hi", "completion": "Hello!", "label": True}, HI, {1}),
    "prompt and completion in messages": ({"prompt": [*HI, HI[0]], "completion": [HI[1]]}, [*HI, *HI], {3}),
    "prompt and completion with a system": (
        {"system": "Be brief.", "prompt": "Hi", "completion": "Hello!"},
        [SYSTEM, *HI],
        {2},
    ),
    "prompt and completion with weights": (
        {"prompt": [HI[0]], "completion": [{**HI[1], "weight": 0}, *HI]},
        [*HI, *HI],
        {3},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_becomes_messages(form: str) -> None:
    values, messages, learned = FORMS[form]
    conversation = parse(values)
    assert conversation.messages == tuple(messages)
    assert conversation.learned == learned
    assert conversation.place == "c.jsonl:1"


def test_each_line_may_have_another_form() -> None:
    Path("c.jsonl").write_text("".join(json.dumps(FORMS[form][0]) + "\n\n" for form in FORMS))
    conversations = list(read_conversations(["c.jsonl"]))
    assert [conversation.line for conversation in conversations] == list(range(1, 2 * len(FORMS), 2))
    assert [conversation.messages for conversation in conversations] == [tuple(row[1]) for row in FORMS.values()]


def test_json_arrays_and_parquet_hold_conversations_too() -> None:
    rows = [{"messages": list(HI), "prompt": None, "completion": None}, {"messages": [SYSTEM, *HI]}]
    Path("a.json").write_text(json.dumps(rows))
    table = pyarrow.Table.from_pylist([*rows, {"prompt": "Hi", "completion": "Hello!"}])
    pyarrow.parquet.write_table(table, "b.parquet")
    conversations = list(read_conversations(["a.json", "b.parquet"]))
    assert [len(conversation.messages) for conversation in conversations] == [2, 3, 2, 3, 2]
    assert [conversation.place for conversation in conversations][1:4] == ["a.json:2", "b.parquet:1", "b.parquet:2"]
    assert conversations[2].messages == HI


def test_a_row_of_parquet_with_a_date_beyond_pythons_is_named() -> None:
    dates = pyarrow.array([0, 10**15], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"messages": [list(HI)] * 2, "label": dates}), "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet:2: a date or a duration is beyond .* Leave that column out\.$"):
        list(read_conversations(["a.parquet"]))


def test_of_parquet_only_what_a_conversation_has_is_read() -> None:
    """Data sets have columns beside it, such as of embeddings, that are larger than all that is said."""
    dates = pyarrow.array([10**15], pyarrow.timestamp("ms"))  # which no Python can read
    for fields in (
        {"messages": list(HI), "system": "Be kind.", "tools": [{"name": "f"}]},
        {"instruction": "Hi", "input": "you", "output": "Hello!", "history": [["a", "b"]]},
        {"prompt": "Hi", "completion": "Hello!", "label": True},
    ):
        expected = parse(fields)
        table = pyarrow.table({"sent": dates, **{name: [value] for name, value in fields.items()}})
        pyarrow.parquet.write_table(table, "a.parquet")
        (found,) = read_conversations(["a.parquet"])
        assert (found.messages, found.tools) == (expected.messages, expected.tools)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["Hi"], "tools": ["[]"]}), "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet:1: this is no conversation: its fields are 'text', 'tools'; "):
        list(read_conversations(["a.parquet"]))


def test_a_picture_in_a_column_of_parquet_is_seen() -> None:
    columns = {"conversations": [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}]]}
    pyarrow.parquet.write_table(pyarrow.table(columns | {"images": [[{"bytes": b"PNG"}]]}), "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet:1: images is \[\{'bytes': b'PNG'\}\], and only text can be "):
        list(read_conversations(["a.parquet"]))


def test_calls_in_parquet_have_their_own_arguments_alone() -> None:
    calls = [{"name": "weather", "arguments": {"city": "Bonn"}}, {"name": "add", "arguments": {"x": 1, "more": [2]}}]
    tools = [
        [{"name": call["name"], "parameters": {key: {"type": "any"} for key in call["arguments"]}}] for call in calls
    ]
    rows = [
        {
            "messages": [*HI, {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}],
            "tools": tool,
        }
        for call, tool in zip(calls, tools, strict=True)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "calls.parquet")
    conversations = list(read_conversations(["calls.parquet"]))
    assert [conversation.messages[-1]["tool_calls"][0]["function"] for conversation in conversations] == calls
    assert [conversation.tools for conversation in conversations] == tools


def test_a_folder_of_a_hub_is_searched_for_conversations_alone() -> None:
    Path("set/data").mkdir(parents=True)
    Path("set/README.md").write_text("---\nlicense: mit\n---\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": list(HI)}]), "set/data/train.parquet")
    assert [conversation.place for conversation in read_conversations(["set"])] == ["set/data/train.parquet:1"]


@pytest.mark.parametrize(
    ("word", "role"),
    [
        *(("human", "user"), ("developer", "system"), ("observation", "tool"), ("function_response", "tool")),
        *((word, "assistant") for word in ("gpt", "chatgpt", "bing", "bard", "model", "function_call")),
    ],
)
def test_other_words_for_a_role_are_known(word: str, role: str) -> None:
    turns = [{"from": word, "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    assert parse({"conversations": turns}).messages[0]["role"] == role


def test_calls_of_functions_are_calls_of_tools() -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    calling = {"role": "assistant", "content": "", "function_call": function}
    result = {"role": "function", "name": "add", "content": "2"}
    old = parse({"messages": [HI[0], calling, result, HI[1]], "functions": [{"name": "add"}]})
    new = [HI[0], {**calling, "tool_calls": [function]}, {**result, "role": "tool"}, HI[1]]
    del new[1]["function_call"]
    assert old == parse({"messages": new, "tools": [{"name": "add"}]})
    both = {**calling, "content": None, "tool_calls": []}  # as a table has them, a column for each
    assert parse({"messages": [HI[0], both, result, HI[1]], "functions": [{"name": "add"}]}) == old


def test_calls_get_openai_s_form() -> None:
    function = {"name": "add", "arguments": '{"a": 1}'}
    whole = {"id": "1", "type": "function", "function": function}
    asking = parse({"messages": [HI[0], {**HI[1], "tool_calls": [whole, function, {"name": "stop"}]}]})
    assert asking.messages[1]["tool_calls"] == [
        whole,
        *({"type": "function", "function": called} for called in (function, {"name": "stop"})),
    ]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_the_parts_of_a_thought_are_its_text_as_those_of_a_content_are(name: str) -> None:
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "greeting."}]
    assert parse({"messages": [HI[0], {**HI[1], name: parts}]}).messages[1][name] == "A greeting."


def test_what_is_said_decides_the_hash_and_nothing_else() -> None:
    turned = [dict(reversed(message.items())) for message in HI]
    assert parse({"messages": turned}).hash == parse({"prompt": "Hi", "completion": "Hello!"}).hash
    assert parse({"messages": HI, "tools": [{"name": "add"}]}).hash != parse({"messages": HI}).hash


def test_what_json_cannot_hold_stands_beside_what_is_said() -> None:
    rows = [{"messages": [HI[0], {**HI[1], "at": datetime(2026, 1, day), "raw": b"\xff"}]} for day in (1, 1, 2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    first, same, other = (conversation.hash for conversation in read_conversations(["a.parquet"]))
    assert first == same != other


def test_when_something_was_said_is_a_text_that_a_template_can_have() -> None:
    rows = [{"messages": [HI[0], {**HI[1], "at": {"day": datetime(2026, 1, 2), "took": timedelta(seconds=3)}}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet")
    (conversation,) = read_conversations(["a.parquet"])
    assert conversation.messages[1] == {**HI[1], "at": {"day": "2026-01-02 00:00:00", "took": "0:00:03"}}


def test_tools_are_a_list_or_json_text() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert parse({"messages": HI, "tools": tools}).tools == tools
    assert parse({"messages": HI, "tools": json.dumps(tools)}).tools == tools
    assert parse({"messages": HI}).tools is None
    assert parse({"messages": HI, "tools": ""}).tools is None


def test_what_the_chat_template_reads_by_name_is_an_object_or_json_text() -> None:
    given = {"enable_thinking": False, "xml_tools": None}
    assert parse({"messages": HI, "chat_template_kwargs": given}).variables == {"enable_thinking": False}
    assert parse({"messages": HI, "chat_template_kwargs": json.dumps(given)}).variables == {"enable_thinking": False}
    assert parse({"messages": HI, "chat_template_kwargs": ""}).variables == parse({"messages": HI}).variables == {}


BROKEN: dict[str, tuple[Any, str]] = {
    "unknown": ({"question": "Hi", "answer": "Hello!"}, "this is no conversation: its fields are 'question', 'answer'"),
    "nothing": ({}, "this is no conversation: its fields are none; expected are messages, conversations,"),
    "no list": ({"messages": "Hi"}, "messages is 'Hi'; it must be a list of messages."),
    "empty": ({"messages": []}, "messages is []; it must be a list of messages."),
    "no object": ({"messages": ["Hi"]}, "messages[0] is 'Hi'; a message is an object with role and content."),
    "no role": ({"messages": [{"content": "Hi"}]}, "the role of messages[0] is None; it must be a text"),
    "no from": ({"conversations": [{"value": "Hi"}]}, "the role of conversations[0] is None; it must be a text"),
    "no content": ({"messages": [{"role": "user"}]}, "the content of messages[0] is None; it must be a text."),
    "a number": ({"messages": [{"role": "user", "content": 5}]}, "the content of messages[0] is 5; it must be a text."),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0] is {'type': 'image_url'}; of the parts of a content, only text can be learned.",
    ),
    "a thought that is no text": (
        {"messages": [HI[0], {**HI[1], "reasoning": 5}]},
        "the reasoning of messages[1] is 5; it must be a text.",
    ),
    "no output": ({"instruction": "Hi"}, "the field 'output' is missing."),
    "no text": ({"instruction": "Hi", "output": 5}, "the field 'output' is 5; it must be a text."),
    "a history that is none": (
        {"instruction": "Hi", "output": "Hello!", "history": [["Hi"]]},
        "history[0] is ['Hi']; it must be a list of a question and its answer.",
    ),
    "a history that is a text": (
        {"instruction": "Hi", "output": "Hello!", "history": "Hi"},
        "history[0] is 'Hi'; it must be a list of a question and its answer.",
    ),
    "no completion": ({"prompt": "Hi"}, "the field 'completion' is missing."),
    "no completion messages": ({"prompt": list(HI)}, "completion is None; it must be a list of messages."),
    "a preference": (
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        "this is a preference, with an answer that is chosen; edgelm finetune --method dpo learns from those.",
    ),
    "no calls either": (
        {"messages": [HI[0], {"role": "assistant", "content": None, "tool_calls": []}]},
        "the content of messages[1] is None; it must be a text.",
    ),
    "calls in a text": (
        {"messages": [HI[0], {**HI[1], "tool_calls": "add()"}]},
        "messages[1].tool_calls is 'add()'; it must be a list of calls.",
    ),
    "a call that is a text": (
        {"messages": [HI[0], {**HI[1], "tool_calls": ["add()"]}]},
        'messages[1].tool_calls[0] is \'add()\'; a call is {"function": {"name": …, "arguments": …}}.',
    ),
    "a call of nothing": (
        {"messages": [HI[0], {**HI[1], "tool_calls": [{"function": {"name": None}}]}]},
        "messages[1].tool_calls[0] is {'function': {'name': None}}; a call is",
    ),
    "arguments that are broken off": (
        {"messages": [HI[0], {**HI[1], "tool_calls": [{"function": {"name": "add", "arguments": '{"a": '}}]}]},
        "the arguments of messages[1].tool_calls[0] are '{\"a\": '; they must be an object, or one as JSON text.",
    ),
    "arguments that are no object": (
        {"messages": [HI[0], {**HI[1], "tool_calls": [{"name": "add", "arguments": [1]}]}]},
        "the arguments of messages[1].tool_calls[0] are [1]; they must be an object, or one as JSON text.",
    ),
    "a typing error": (
        {"messages": [*HI, {**HI[0], "role": "User"}]},
        "the role of messages[2] is 'User'. Did you mean 'user'?",
    ),
    "no assistant": (
        {"messages": [HI[0], {**HI[0], "role": "ai"}]},
        "there is no message of the assistant to learn; the roles here are 'user', 'ai'.",
    ),
    "a weight that is a text": (
        {"messages": [HI[0], {**HI[1], "weight": "0"}]},
        "the weight of messages[1] is '0'; it must be 0 or 1.",
    ),
    "a training that is a text": (
        {"messages": [HI[0], {**HI[1], "train": "no"}]},
        "the train of messages[1] is 'no'; it must be true or false.",
    ),
    "a picture beside the messages": (
        {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A"}]},
        "image is 'a.jpg', and only text can be learned. Leave such lines out, or the field where the answers do not ",
    ),
    "KTO's bad answer": (
        {"prompt": "Hi", "completion": "What?", "label": False},
        "label is false: the completion is one of KTO's bad answers. Leave such rows out;",
    ),
    "a message that is learned in parts": (
        {"messages": [HI[0], {**HI[1], "training_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]}]},
        "messages[1] has a training_detail, and a message is learned as a whole or not at all.",
    ),
    "a turn of ShareGPT that is learned in parts": (
        {"conversations": [{"from": "gpt", "value": "Hi", "train_detail": [{"begin_offset": 0, "end_offset": 0}]}]},
        "conversations[0] has a train_detail, and a message is learned as a whole or not at all.",
    ),
    "variables that are a list": (
        {"messages": HI, "chat_template_kwargs": ["enable_thinking"]},
        "chat_template_kwargs is ['enable_thinking']; it must be an object.",
    ),
    "a weight of ShareGPT that is a text": (
        {"conversations": [{"from": "gpt", "value": "Hi", "weight": "0"}]},
        "the weight of conversations[0] is '0'; it must be 0 or 1.",
    ),
    "a system that is no text": ({"messages": HI, "system": 3}, "the field 'system' is 3; it must be a text."),
    "no weight": (
        {"messages": [HI[0], {**HI[1], "weight": 0}]},
        "there is no message of the assistant to learn; the roles here are 'user', 'assistant'.",
    ),
    "tools": ({"messages": HI, "tools": "add"}, "tools is a text that is no JSON: "),
    "tools in tools": ({"messages": HI, "tools": "[" * 100_000}, "tools is a text that is no JSON: maximum recursion"),
    "a tool that is a name": ({"messages": HI, "tools": ["add"]}, "tools[0] is 'add'; a definition is an object."),
    "tools of one": ({"messages": HI, "tools": {}}, "tools is {}; it must be a list."),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_conversation_is_named_with_file_and_line(kind: str) -> None:
    values, words = BROKEN[kind]
    Path("c.jsonl").write_text(json.dumps({"messages": HI}) + "\n" + json.dumps(values) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_conversations(["c.jsonl"]))
    assert str(caught.value).startswith(f"c.jsonl:2: {words}")

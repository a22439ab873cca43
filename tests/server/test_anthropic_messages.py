"""POST /v1/messages, against the chat endpoint and Anthropic's order of events."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from types import SimpleNamespace

import pytest
from edgelm_server import CHAT

from edgelm.completion import Chunk, Timings, ToolCallDelta, Usage
from edgelm.decoding.answer import join
from edgelm.server import anthropic_messages, openai_responses
from edgelm.server.answers import Job
from edgelm.server.anthropic_messages import MessageWriter
from edgelm.server.api_error import ApiError
from edgelm.server.message_input import as_chat

HELLO = [{"role": "user", "content": "Hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
WEATHER = {"name": "weather", "description": "Tell it.", "input_schema": SCHEMA}
CALLS = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "max_tokens": 120}


def ask(serving, messages=HELLO, **fields):
    body = {"model": "tiny-random", "max_tokens": 12, "messages": messages, **fields}
    return serving.post("/v1/messages", body)


def chat(serving, messages=HELLO, **fields):
    reply = serving.post(CHAT, {"messages": messages, "max_tokens": 12, **fields}).json
    return reply["choices"][0], reply["usage"]


def built(events):
    """Build the message of some events, as Anthropic's own packages do."""
    first, *others = copy.deepcopy(events)
    message, pieces = first["message"], {}
    for event in others:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            if delta["type"] == "input_json_delta":
                pieces[event["index"]] = pieces.get(event["index"], "") + delta["partial_json"]
                continue
            name = delta["type"].removesuffix("_delta")
            block[name] += delta[name]
        elif event["type"] == "content_block_stop" and event["index"] in pieces:
            message["content"][event["index"]]["input"] = json.loads(pieces[event["index"]])
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def without_ids(message):
    content = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**message, "id": "", "content": content}


def test_a_conversation_is_answered_as_in_openais_form(serving):
    message = ask(serving, system="Be brief.").json
    choice, usage = chat(serving, [{"role": "system", "content": "Be brief."}, *HELLO])
    assert message["content"] == [{"type": "text", "text": choice["message"]["content"]}]
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", "tiny-random")
    assert (message["stop_reason"], message["stop_sequence"]) == ("max_tokens", None)
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] == usage["prompt_tokens"]
    assert message["usage"]["output_tokens"] == 12


def test_the_events_build_the_message(serving):
    events = ask(serving, stream=True).events
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert without_ids(built(events)) == without_ids(ask(serving).json)
    named = ask(serving, stream=True).data.decode().split("\n\n")[:-1]
    assert [part.partition("\n")[0] for part in named] == [f"event: {kind}" for kind in kinds]


def test_what_was_computed_before_is_no_input(serving):
    asked = {"system": [{"type": "text", "text": "Be kind. " * 40, "cache_control": {"type": "ephemeral"}}]}
    first, again = (ask(serving, **asked).json["usage"] for _ in range(2))
    streamed = built(ask(serving, **asked, stream=True).events)["usage"]
    assert first["cache_read_input_tokens"] == 0 < again["cache_read_input_tokens"] < first["input_tokens"]
    assert again["input_tokens"] + again["cache_read_input_tokens"] == first["input_tokens"]
    assert streamed == again


def test_blocks_are_messages_of_openais_form():
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"on": True}, "caller": {"type": "direct"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Is it "}, {"type": "text", "text": "on?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look.", "citations": None},
                call,
                {**call, "id": "toolu_2"},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "yes"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no lamp", "is_error": True},
                {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "It is"}]},
    ]
    function = {"name": "weather", "arguments": '{"on": true}'}
    assert as_chat({"system": [{"type": "text", "text": "Be brief."}], "messages": messages})["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it on?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": function},
                {"id": "toolu_2", "type": "function", "function": function},
            ],
            "reasoning_content": "Hm.",
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "yes"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error: no lamp"},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "It is"},
    ]


def test_turns_of_one_role_are_one_and_a_system_message_among_them_is_the_users_text():
    turns = [("system", "a"), ("user", "b"), ("user", "c"), ("system", "d"), ("assistant", "e"), ("assistant", "f")]
    messages = [{"role": role, "content": text} for role, text in turns]
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    messages.append({"role": "assistant", "content": [call]})
    *others, last = as_chat({"system": "x", "messages": messages})["messages"]
    assert [(message["role"], message["content"]) for message in others] == [
        ("system", "x\n\na"),
        ("user", "b\n\nc\n\nd"),
    ]
    assert (last["content"], last["tool_calls"][0]["id"]) == ("e\n\nf", "1")


def test_an_answer_goes_on_with_its_beginning(serving):
    begun = [*HELLO, {"role": "assistant", "content": "The sea"}]
    assert ask(serving, begun).json["content"][0]["text"] == chat(serving, begun)[0]["message"]["content"]


def test_a_tool_is_called_and_its_result_taken(serving):
    message = ask(serving, **CALLS).json
    (call,) = message["content"]
    assert (call["type"], call["name"], message["stop_reason"]) == ("tool_use", "weather", "tool_use")
    assert isinstance(call["input"]["on"], bool)
    events = ask(serving, **CALLS, stream=True).events
    assert events[1]["content_block"]["input"] == {}
    assert built(events)["content"] == [{**call, "id": events[1]["content_block"]["id"]}]
    assert built(events)["stop_reason"] == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "yes, it is"}
    turns = [*HELLO, {"role": "assistant", "content": message["content"]}, {"role": "user", "content": [result]}]
    answer = ask(serving, turns, tools=[WEATHER], tool_choice={"type": "none"}).json
    function = {"name": "weather", "arguments": json.dumps(call["input"])}
    expected, _ = chat(
        serving,
        [
            *HELLO,
            {"role": "assistant", "tool_calls": [{"id": call["id"], "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": call["id"], "content": "yes, it is"},
        ],
    )
    assert answer["content"][0]["text"] == expected["message"]["content"]


@pytest.mark.parametrize(
    ("given", "choice", "parallel"),
    [
        (None, "auto", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
        ({"type": "any"}, "required", True),
        ({"type": "none"}, "none", True),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}, True),
    ],
)
def test_a_choice_of_tools_is_openais(given, choice, parallel):
    body = as_chat({"messages": HELLO, "tools": [WEATHER | {"strict": True}], "tool_choice": given})
    assert (body["tool_choice"], body["parallel_tool_calls"]) == (choice, parallel)
    function = {"name": "weather", "description": "Tell it.", "parameters": SCHEMA, "strict": True}
    assert body["tools"] == [{"type": "function", "function": function}]


def test_the_schema_of_a_tool_may_have_null_for_its_properties(serving):
    tool = {"name": "now", "input_schema": {"type": "object", "properties": None, "required": None}}
    assert ask(serving, tools=[tool]).status == 200
    (given,) = as_chat({"messages": HELLO, "tools": [tool]})["tools"]
    assert given["function"] == {"name": "now", "parameters": {"type": "object"}}


def test_an_answer_says_which_stop_sequence_ended_it(serving):
    text = ask(serving).json["content"][0]["text"]
    stop = text[4:6]
    message = ask(serving, stop_sequences=["nowhere", stop]).json
    assert message["content"][0]["text"] == text[: text.index(stop)]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)
    assert built(ask(serving, stop_sequences=["nowhere", stop], stream=True).events)["stop_sequence"] == stop


def test_an_answer_keeps_to_a_schema(serving):
    message = ask(serving, output_config={"format": {"type": "json_schema", "schema": SCHEMA}}, max_tokens=40).json
    assert isinstance(json.loads(message["content"][0]["text"])["on"], bool)
    assert message["stop_reason"] == "end_turn"


def test_what_is_counted_is_what_an_answer_reads(serving):
    for fields in ({}, {"system": "Be brief."}, {"tools": [WEATHER]}, CALLS, {"tool_choice": {"type": "none"}}):
        asked = {name: value for name, value in fields.items() if name != "max_tokens"}
        counted = serving.post("/v1/messages/count_tokens", {"model": "tiny-random", "messages": HELLO, **asked}).json
        usage = ask(serving, **fields).json["usage"]
        assert counted == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


class Said:
    """What the model said, in these chunks."""

    jobs = (Job(prompt_ids=(1, 2, 3), config=None),)

    def __init__(self, *chunks, finish_reason="stop", stop=None):
        usage, timings = (
            Usage(prompt_tokens=3, completion_tokens=1),
            Timings(prefill_seconds=0.0, decode_seconds=0.0, prefill_tokens=1, decode_tokens=1),
        )
        last = {"finish_reason": finish_reason, "stop": stop, "usage": usage, "timings": timings}
        self.said = [*chunks, Chunk(text="", token_ids=(2,), **last)]

    async def chunks(self):
        for chunk in self.said:
            yield None if chunk is None else (0, chunk)


def written(answers, **fields):
    async def pieces():
        writer = MessageWriter(model="m", **{"stop_sequences": (), **fields})
        return [piece async for piece in writer.stream(answers)]

    return [json.loads(piece.partition(b"data: ")[2]) for piece in asyncio.run(pieces())]


def test_the_end_of_a_call_and_the_text_behind_it_may_come_at_once():
    first = ToolCallDelta(index=0, id="1", name="f", arguments='{"a": ')
    rest = ToolCallDelta(index=0, arguments="1}")
    other = ToolCallDelta(index=1, id="2", name="g", arguments="{}")
    said = Said(
        Chunk(text="", token_ids=(1,), reasoning="Hm."),
        Chunk(text="", token_ids=(2,), tool_calls=(first,)),
        None,
        Chunk(text="Done", token_ids=(3,), tool_calls=(rest, other)),
        finish_reason="tool_calls",
    )
    events = written(said)
    message = built(events)
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
        {"type": "text", "text": "Done"},
        {"type": "tool_use", "id": "2", "name": "g", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"
    assert {"type": "ping"} in events


def test_a_request_for_no_tokens_reads_the_prompt_for_those_to_come(serving):
    asked = {"system": "Stay calm. " * 40}
    read, answered = (ask(serving, **asked, max_tokens=most).json for most in (0, 1))
    assert (read["content"], read["stop_reason"], read["stop_sequence"]) == ([], "max_tokens", None)
    assert read["usage"]["output_tokens"] == 0
    assert answered["usage"]["cache_read_input_tokens"] > 100


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_full_context_ends_says_so(serving, stream):
    fields = {"system": "word " * 300, "logit_bias": {"65": 100}, "stream": stream}
    prompt = serving.post("/v1/messages/count_tokens", {"messages": HELLO, "system": fields["system"]}).json
    left = 1025 - prompt["input_tokens"]  # the last token takes no place
    for most, reason in ((left, "max_tokens"), (left + 1, "model_context_window_exceeded")):
        reply = ask(serving, **fields, max_tokens=most)
        message = built(reply.events) if stream else reply.json
        assert (message["usage"]["output_tokens"], message["stop_reason"]) == (left, reason)


@pytest.mark.parametrize("chunks", [(), (Chunk(text="", token_ids=(1,), reasoning="Hm"),)])
def test_an_answer_without_text_and_calls_has_an_empty_text(chunks):
    said = Said(*chunks, finish_reason="length")
    whole = MessageWriter(model="m", stop_sequences=()).whole([join(said.said)])
    assert whole["content"][-1] == {"type": "text", "text": ""}
    assert without_ids(built(written(said))) == without_ids(whole)


def test_a_call_that_was_cut_off_is_left_out_where_the_answer_is_whole():
    call = ToolCallDelta(index=0, id="1", name="f", arguments='{"a')
    said = Said(Chunk(text="Do", token_ids=(1,), tool_calls=(call,)), finish_reason="length")
    whole = MessageWriter(model="m", stop_sequences=()).whole([join(said.said)])
    assert (whole["content"], whole["stop_reason"]) == ([{"type": "text", "text": "Do"}], "max_tokens")


def test_an_answer_without_a_call_that_it_can_hold_asks_for_no_result():
    call = ToolCallDelta(index=0, id="1", name="f", arguments='{"a": 1e999}')
    said = Said(Chunk(text="Do", token_ids=(1,), tool_calls=(call,)), finish_reason="tool_calls")
    whole = MessageWriter(model="m", stop_sequences=()).whole([join(said.said)])
    assert (whole["content"], whole["stop_reason"]) == ([{"type": "text", "text": "Do"}], "end_turn")


def test_a_stop_text_of_the_models_author_is_no_stop_sequence():
    said = Said(Chunk(text="Done", token_ids=(1,)), stop="###")
    assert built(written(said))["stop_reason"] == "end_turn"
    message = built(written(said, stop_sequences=["###"]))
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "###")


def test_an_error_within_a_stream_is_its_last_event():
    data = MessageWriter(model="m", stop_sequences=()).error(ApiError(503, "There is no memory."))
    name, _, line = data.decode().partition("\n")
    assert name == "event: error"
    error = {"type": "overloaded_error", "message": "There is no memory."}
    assert json.loads(line.removeprefix("data: ")) == {"type": "error", "error": error}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_types_and_form(status, kind):
    body = {"type": "error", "error": {"type": kind, "message": "No."}}
    assert ApiError(status, "No.").body("/v1/messages") == body
    assert ApiError(status, "No.").body("/v1/messages/count_tokens") == body
    assert "type" not in ApiError(status, "No.").body("/v1/messagess")


@pytest.mark.parametrize(
    ("method", "path", "headers", "kind"),
    [
        ("GET", "/v1/messages", {}, "invalid_request_error"),
        ("POST", "/v1/messages/batches", {}, "not_found_error"),
        ("POST", "/v1/messages", {"Host": "evil.example"}, "permission_error"),
        ("POST", "/v1/messages", {}, "invalid_request_error"),
        ("POST", "/v1/messages", {"Content-Length": str(17 << 20)}, "request_too_large"),
    ],
)
def test_what_the_server_refuses_before_it_reads_has_that_form_too(serving, method, path, headers, kind):
    reply = serving.request(method, path, b"{", headers)
    assert (reply.json["type"], reply.json["error"]["type"]) == ("error", kind)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens is missing."),
        ({"max_tokens": -1}, "max_tokens is -1; it must be from 0"),
        ({"max_tokens": 0, "stream": True}, "max_tokens is 0: there is no answer to stream."),
        ({"temperature": 1.5}, "temperature is 1.5; it must be from 0 to 1."),
        ({"messages": []}, "messages has 0 items"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role is 'tool'; it must be one of"),
        ({"tools": [{"type": "web_search_20260318", "name": "x"}]}, "tools[0].type is 'web_search_20260318'"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema is missing."),
        ({"tools": [WEATHER | {"name": "x" * 257}]}, "tools[0].name has 257 characters; it must have 1 to 256."),
        ({"tools": [WEATHER | {"input_examples": [{}]}]}, "tools[0].input_examples is not supported"),
        ({"tools": [WEATHER | {"allowed_callers": ["code_execution_20260521"]}]}, "allowed_callers[0] is 'code"),
        ({"tool_choice": {"type": "tool"}, "tools": [WEATHER]}, "tool_choice.name is missing."),
        ({"tool_choice": {"type": "tool", "name": "x"}, "tools": [WEATHER]}, "names the tool 'x'; there are: weather"),
        ({"tool_choice": {"type": "any"}}, "tool_choice asks for a call, but there are no tools."),
        ({"mcp_servers": [{"url": "http://127.0.0.1"}]}, "mcp_servers is not supported: the client calls tools."),
        ({"container": "c"}, "container is not supported: there is none here."),
        ({"stop": ["x"]}, "stop is not supported: use stop_sequences."),
        ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "edits[0].type is 'compact_20260112'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type is not supported: the chat template"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type is 'between_tools'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema is missing."),
        ({"max_token": 3}, "There is no field 'max_token'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(serving, fields, words):
    reply = ask(serving, **fields)
    assert reply.status == 400, reply.data
    assert words in reply.json["error"]["message"]


def test_packages_can_tell_that_no_conversation_is_kept(serving):
    error = ask(serving, thread={"type": "create"}).json["error"]
    assert error["message"] == "thread is not supported: nothing is kept here; send the whole conversation."
    assert error["details"] == {"error_code": "thread_unsupported_request"}


@pytest.mark.parametrize(
    ("role", "block", "words"),
    [
        ("user", {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}, ".type is 'image'; it must"),
        ("user", {"source": {"type": "text"}, "type": "document"}, ".source is not supported: these models read text"),
        ("user", {"type": "tool_use", "id": "1", "name": "f", "input": {}}, " is a block of type 'tool_use'; with"),
        ("assistant", {"type": "tool_result", "tool_use_id": "1"}, "with the role 'assistant' go text, tool_use,"),
        ("user", {"type": "text"}, ".text is missing."),
        ("user", {"type": "tool_result"}, ".tool_use_id is missing."),
        ("assistant", {"type": "tool_use", "id": "1", "name": "f"}, ".input is missing."),
        (
            "user",
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image", "source": {}}]},
            ".content[0] is a part of type 'image'; these models read text alone",
        ),
    ],
)  # fmt: skip
def test_a_block_that_cannot_be_read_is_refused_with_its_place(serving, role, block, words):
    reply = ask(serving, [*HELLO, {"role": role, "content": [{"type": "text", "text": "x"}, block]}])
    assert reply.status == 400, reply.data
    assert reply.json["error"]["message"].startswith("messages[1].content[1]")
    assert words in reply.json["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "me"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}},
        {"speed": "fast", "inference_geo": "eu", "diagnostics": {"previous_message_id": None}, "mcp_servers": []},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"}},
        {"thinking": {"type": "disabled"}, "tools": [], "stop_sequences": []},
        {"tools": [WEATHER | {"name": "x" * 128}], "tool_choice": {"type": "none"}},
    ],
)
def test_what_changes_no_answer_is_taken(serving, fields):
    plain, given = (ask(serving, **more) for more in ({}, fields))
    assert given.status == 200, given.data
    assert given.json["content"] == plain.json["content"]


def test_the_models_have_what_anthropics_clients_read_of_them(serving):
    reply = serving.get("/v1/models", Anthropic_Version="2023-06-01").json
    (model,) = reply["data"]
    assert (model["type"], model["id"], model["display_name"]) == ("model", "tiny-random", "tiny-random")
    assert model["lifecycle"] == "active"
    assert model["created_at"].endswith("+00:00")
    assert (model["max_input_tokens"], model["max_tokens"], model["max_model_len"]) == (1024, 1024, 1024)
    assert (reply["has_more"], reply["first_id"], reply["last_id"]) == (False, "tiny-random", "tiny-random")


@pytest.mark.parametrize(
    ("module", "endpoint"),
    [
        (anthropic_messages, "create_message"),
        (anthropic_messages, "count_message_tokens"),
        (openai_responses, "create_response"),
        (openai_responses, "count_input_tokens"),
    ],
)
def test_a_conversation_is_put_into_another_form_beside_the_event_loop(module, endpoint, monkeypatch):
    threads = []

    def as_chat(_body):  # of a megabyte of calls it takes a third of a second
        threads.append(threading.current_thread())
        raise ApiError(400, "No.")

    monkeypatch.setattr(module, "as_chat", as_chat)
    with pytest.raises(ApiError):
        asyncio.run(getattr(module, endpoint)(SimpleNamespace(body={}, in_thread=asyncio.to_thread)))
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()

"""POST /v1/responses, against the chat endpoint and OpenAI's order of events."""

from __future__ import annotations

import asyncio
import json

import pytest
from edgelm_server import CHAT

from edgelm.completion import Chunk, Timings, TokenLogprob, ToolCallDelta, Usage
from edgelm.decoding.answer import join
from edgelm.server import openai_responses
from edgelm.server.api_error import ApiError
from edgelm.server.logprobs import LogprobsOfText
from edgelm.server.openai_responses import ResponseWriter

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": SCHEMA}


def respond(serving, **fields):
    return serving.post("/v1/responses", {"input": "Hello there", "max_output_tokens": 12, **fields})


def chat_text(serving, messages):
    return serving.post(CHAT, {"messages": messages, "max_tokens": 12}).json["choices"][0]["message"]["content"]


def test_an_input_is_answered_as_a_chat_is(serving):
    response = respond(serving, instructions="Be brief.", metadata={"a": "b"}).json
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    (item,) = response["output"]
    assert item["content"][0]["text"] == chat_text(serving, turns)
    assert (response["object"], response["status"]) == ("response", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["usage"]["output_tokens"] == 12
    assert response["metadata"] == {"a": "b"}


def test_a_list_of_items_is_a_conversation(serving):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello there"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}], "id": "m"},
        {"role": "user", "content": "What is a wave?"},
    ]
    turns = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What is a wave?"},
    ]
    assert respond(serving, input=items).json["output"][0]["content"][0]["text"] == chat_text(serving, turns)


def test_a_response_repeats_what_was_asked_and_what_was_cached(serving):
    asked = {
        "instructions": "Be brief.", "temperature": 0.5, "top_p": 0.5, "user": "me", "max_output_tokens": 3,
        "tools": [WEATHER], "tool_choice": "none", "parallel_tool_calls": False, "metadata": {"a": "b"},
        "text": {"format": {"type": "json_object"}}, "frequency_penalty": 0.5, "presence_penalty": 0.25,
    }  # fmt: skip
    response = respond(serving, **asked, input="Hello there " * 40).json
    assert {name: response[name] for name in asked} == asked
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    again = respond(serving, **asked, input="Hello there " * 40).json["usage"]
    assert 0 < again["input_tokens_details"]["cached_tokens"] < again["input_tokens"]


@pytest.mark.parametrize("fields", [{}, {"instructions": "Be brief."}, {"tools": [WEATHER], "tool_choice": "required"}])
def test_the_tokens_of_an_input_are_counted_as_its_answer_counts_them(serving, fields):
    counted = serving.post("/v1/responses/input_tokens", {"input": "Hello there", **fields}).json
    read = respond(serving, **fields).json["usage"]["input_tokens"]
    assert counted == {"object": "response.input_tokens", "input_tokens": read}


def test_an_input_beyond_the_context_is_counted(serving, tiny):
    reply = serving.post("/v1/responses/input_tokens", {"input": "Hello there " * 2000})
    assert reply.json["input_tokens"] > tiny.context_length


def test_the_events_build_the_response(serving):
    whole = respond(serving).json
    events = respond(serving, stream=True).events
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert events[2]["item"]["content"] == []  # the part comes next, and clients would have it twice
    assert all(event["logprobs"] == [] for event in events if event["type"].startswith("response.output_text."))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == whole["output"][0]["content"][0]["text"]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == text
    assert events[-1]["response"]["usage"] == whole["usage"]
    assert {event["response"]["id"] for event in events if "response" in event} == {events[0]["response"]["id"]}


LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


def test_log_probabilities_are_those_of_the_chat_and_the_events_build_them(serving):
    fields = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 12}
    chat = serving.post(CHAT, {**fields, "logprobs": True, "top_logprobs": 2}).json
    expected = chat["choices"][0]["logprobs"]["content"]
    assert len(expected) == 12
    response = respond(serving, **LOGPROBS).json
    assert response["output"][0]["content"][0]["logprobs"] == expected
    assert response["top_logprobs"] == 2
    events = respond(serving, **LOGPROBS, stream=True).events
    deltas = (event["logprobs"] for event in events if event["type"] == "response.output_text.delta")
    assert [token for delta in deltas for token in delta] == expected
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected


def test_log_probabilities_are_those_of_the_text_alone():
    """Of what was thought, and of a call, there are none; a token behind which half a character is left waits."""

    def chunk(id_, **said):
        logprobs = (TokenLogprob(id=id_, text="", logprob=0.0),)
        return Chunk(**{"text": "", "token_ids": (id_,), "logprobs": logprobs, **said})

    call = ToolCallDelta(index=0, id="1", name="f", arguments="{}")
    parser = LogprobsOfText()
    said = [
        chunk(1), chunk(2, reasoning="a"), chunk(3), chunk(4, text="b"), chunk(5), chunk(6, tool_calls=(call,)),
    ]  # fmt: skip
    assert [token.id for each in said for token in parser.take(each).logprobs] == [3, 4]


def test_a_stream_keeps_no_more_log_probabilities_than_a_whole_answer_may_have(monkeypatch):
    monkeypatch.setattr(openai_responses, "MAX_TEXTS", 3)
    token = TokenLogprob(id=1, text="a", logprob=0.0, alternatives=(TokenLogprob(id=2, text="b", logprob=0.0),))
    chunks = [Chunk(text="a", token_ids=(1,), logprobs=(token,))] * 2
    with pytest.raises(ApiError, match="more than 3 log-probabilities, all of which its end repeats"):
        written(Said(*chunks))


def test_a_tool_is_called_and_its_output_taken(serving):
    fields = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 120}
    response = respond(serving, **fields).json
    (call,) = response["output"]
    assert (call["type"], call["name"], response["status"]) == ("function_call", "weather", "completed")
    assert isinstance(json.loads(call["arguments"])["on"], bool)
    events = respond(serving, **fields, stream=True).events
    streamed = "".join(e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta")
    assert streamed == call["arguments"]
    items = [
        {"role": "user", "content": "Is it on?"},
        {name: call[name] for name in ("type", "id", "call_id", "name", "arguments", "status")},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "yes, it is"},
    ]
    answer = respond(serving, input=items, tools=[WEATHER]).json
    items[2]["output"] = [{"type": "input_text", "text": "yes, "}, {"type": "input_text", "text": "it is"}]
    in_parts = respond(serving, input=items, tools=[WEATHER]).json
    assert in_parts["output"][0]["content"] == answer["output"][0]["content"]
    assert in_parts["usage"]["input_tokens"] == answer["usage"]["input_tokens"]


class Said:
    """What the model said, in these chunks."""

    def __init__(self, *chunks, finish_reason="stop"):
        usage, timings = (
            Usage(prompt_tokens=1, completion_tokens=1),
            Timings(prefill_seconds=0.0, decode_seconds=0.0, prefill_tokens=1, decode_tokens=1),
        )
        end = Chunk(text="", token_ids=(2,), finish_reason=finish_reason, usage=usage, timings=timings)
        self.said = [*chunks, end]

    async def chunks(self):
        for chunk in self.said:
            yield 0, chunk


def written(answers):
    async def pieces():
        return [piece async for piece in ResponseWriter(model="m", body={}).stream(answers)]

    return [json.loads(piece.partition(b"data: ")[2]) for piece in asyncio.run(pieces())]


def test_the_tools_of_a_namespace_are_called_with_it(serving):
    spaces = [{"type": "namespace", "name": name, "description": "x", "tools": [WEATHER]} for name in ("home", "away")]
    fields = {"tools": spaces, "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 80}
    (call,) = respond(serving, **fields).json["output"]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert call["namespace"] in ("home", "away")
    events = respond(serving, **fields, stream=True).events
    assert [event["response"]["output"][0]["namespace"] for event in events[-1:]] == [call["namespace"]]
    assert [event["name"] for event in events if event["type"] == "response.function_call_arguments.done"] == [
        "weather"
    ]

    chosen = {"tool_choice": {"type": "function", "name": "away.weather"}}
    assert respond(serving, **fields | chosen).json["output"][0]["namespace"] == "away"

    def told(given):
        output = {"type": "function_call_output", "call_id": "1", "output": "sunny"}
        return respond(serving, input=[{"role": "user", "content": "x"}, given, output]).json["output"][0]["content"]

    given = {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}", "namespace": "away"}
    assert told(given) == told({**given, "name": "away.weather", "namespace": None})
    assert told(given) != told({**given, "namespace": None})


def test_the_end_of_a_call_and_the_text_behind_it_may_come_at_once():
    events = written(
        Said(
            Chunk(text="", token_ids=(1,), tool_calls=(ToolCallDelta(index=0, id="1", name="f", arguments='{"a": '),)),
            Chunk(
                text="Done",
                token_ids=(2,),
                tool_calls=(
                    ToolCallDelta(index=0, arguments="1}"),
                    ToolCallDelta(index=1, id="2", name="g", arguments="{"),
                    ToolCallDelta(index=1, arguments="}"),
                ),
            ),
        )
    )
    call, message, other = events[-1]["response"]["output"]
    assert (call["name"], call["arguments"], message["content"][0]["text"]) == ("f", '{"a": 1}', "Done")
    assert (other["name"], other["arguments"]) == ("g", "{}")
    assert [item["item"] for item in events if item["type"] == "response.output_item.done"] == [call, message, other]


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_a_response_says_when_it_was_completed_where_it_is(finish_reason):
    answers = Said(Chunk(text="Do", token_ids=(1,)), finish_reason=finish_reason)
    started, *_, last = (event["response"] for event in written(answers) if "response" in event)
    whole = ResponseWriter(model="m", body={}).whole([join(answers.said)])
    assert started["completed_at"] is None
    for response in (last, whole):
        if finish_reason == "length":
            assert response["completed_at"] is None
        else:
            assert response["completed_at"] >= response["created_at"]


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(text="Do", token_ids=(1,)),
        Chunk(text="", token_ids=(1,), reasoning="Hm"),  # a message without a text stands behind it
        Chunk(text="Do", token_ids=(1,), tool_calls=(ToolCallDelta(index=0, id="1", name="f", arguments='{"a'),)),
    ],
)
@pytest.mark.parametrize(("finish_reason", "status"), [("length", "incomplete"), ("stop", "completed")])
def test_of_an_answer_that_was_cut_off_the_last_item_is_incomplete(chunk, finish_reason, status):
    answers = Said(chunk, finish_reason=finish_reason)
    events = written(answers)
    last = events[-1]["response"]
    *before, item = last["output"]
    assert (last["status"], events[-1]["type"]) == (status, f"response.{status}")
    # A call with "stop" was stopped inside its arguments: whole ones end an answer with "tool_calls".
    assert item["status"] == ("incomplete" if chunk.tool_calls else status)
    assert all(other["status"] == "completed" for other in before)
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == last["output"]
    whole = ResponseWriter(model="m", body={}).whole([join(answers.said)])
    assert [(i["type"], i["status"]) for i in whole["output"]] == [(i["type"], i["status"]) for i in last["output"]]


def test_an_input_that_outgrows_the_context_is_cut_where_that_is_asked_for(serving):
    long = [{"role": "user", "content": "word " * 600}, {"role": "user", "content": "Hello there"}]
    assert "maximum context length" in respond(serving, input=long, truncation="disabled").json["error"]["message"]
    response = respond(serving, input=long, truncation="auto").json
    answer = serving.post(CHAT, {"messages": long, "max_tokens": 12, "context_shift": 0}).json
    assert response["output"][0]["content"][0]["text"] == answer["choices"][0]["message"]["content"]
    assert response["truncation"] == "auto"


def test_an_answer_keeps_to_a_schema(serving):
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    for others in ({}, {"structured_outputs": {"json": None, "regex": ""}, "guided_choice": []}):  # ask for nothing
        response = respond(serving, text={"format": form}, max_output_tokens=40, **others).json
        assert response["status"] == "completed"
        assert isinstance(json.loads(response["output"][0]["content"][0]["text"])["on"], bool)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": []}, "input has 0 items"),
        ({"input": [{"role": "user"}]}, "input[0].content is missing."),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id is missing."),
        (
            {"input": [{"type": "item_reference", "id": "x"}]},
            "input[0] refers to an item of an earlier answer, and nothing is kept here; send the item itself",
        ),
        (
            {"tools": [{"type": "namespace", "name": n, "tools": [WEATHER] * 65} for n in "ab"]},
            "There are 130 tools in all; 128 may be offered.",
        ),
        ({"previous_response_id": "resp_1"}, "nothing is kept here; send the whole conversation as input."),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema is missing."),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]}},
            "tool_choice.mode is missing.",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name is missing."),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort is not supported: the chat template of tiny-random reads"),
        ({"reasoning": {"effort": "lots"}}, "reasoning.effort is 'lots'; it must be one of none, minimal"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported: use text.format."),
        (
            {"guided_json": {"type": "object"}, "text": {"format": {"type": "json_object"}}},
            "text.format and guided_json exclude each other: an answer has one form.",
        ),
        ({"grammar": 'root ::= "x"', "guided_regex": "x"}, "grammar and guided_regex exclude each other"),
        ({"reasoning_effort": "low"}, "reasoning_effort is not supported: use reasoning.effort."),
        ({"context_management": [{"type": "compaction"}]}, "truncation says what goes."),
        ({"top_logprobs": 2}, "top_logprobs needs include: ['message.output_text.logprobs']."),
        ({"include": ["message.output_text.logprob"]}, "include[0] is 'message.output_text.logprob'; it must be"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type is 'web_search'"),
    ],
)
def test_what_cannot_be_done_is_refused(serving, fields, words):
    reply = respond(serving, **fields)
    assert reply.status == 400, reply.data
    assert words in reply.json["error"]["message"]


def test_system_messages_behind_each_other_are_one(serving):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "input_text", "text": "Now."}]},
        {"role": "user", "content": "x"},
        {"role": "developer", "content": "Be long."},
    ]
    given = respond(serving, instructions="Be kind.", input=items).json
    turns = [
        {"role": "system", "content": "Be kind.\n\nBe brief.\n\nNow."},
        {"role": "user", "content": "x"},
        {"role": "system", "content": "Be long."},
    ]
    assert given["output"][0]["content"][0]["text"] == chat_text(serving, turns)


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning": {"summary": "auto"}},
        {"reasoning": {"generate_summary": "concise"}},
        {"client_metadata": {"session_id": "1"}, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "1"},
        {"include": [], "top_logprobs": 0},
        {"text": {"verbosity": "medium"}},
    ],
)
def test_what_changes_no_answer_is_taken(serving, fields):
    plain, given = (respond(serving, **more) for more in ({}, fields))
    assert given.status == 200, given.data
    assert given.json["output"][0]["content"] == plain.json["output"][0]["content"]
    assert given.json["reasoning"] == {"effort": None, "summary": None}


@pytest.mark.parametrize("field", ["content", "output"])
def test_an_image_is_refused(serving, field):
    item = {"role": "user"} if field == "content" else {"type": "function_call_output", "call_id": "1"}
    item[field] = [{"type": "input_image", "image_url": "http://127.0.0.1/"}]
    reply = respond(serving, instructions="Be brief.", input=[{"role": "user", "content": "x"}, item])
    assert reply.status == 400
    assert reply.json["error"]["message"].startswith(f"input[1].{field}[0] is a part of type 'input_image'; these")
    assert reply.json["error"]["param"] == f"input[1].{field}[0]"

"""What a model thinks before it answers, in each protocol, whole and streamed."""

from __future__ import annotations

import json

import pytest
from edgelm_server import CHAT, TINY, EdgelmServer
from thinking_model import ANSWER, CHANNELS_TEMPLATE, OPENING_TEMPLATE, SAID, THOUGHT, thinking_server

HELLO = [{"role": "user", "content": "What is the sea?"}]


@pytest.fixture(scope="module")
def thinking():
    prelude = thinking_server(ANSWER.removeprefix("<think>\n"), OPENING_TEMPLATE)
    with EdgelmServer((TINY,), prelude=prelude) as server:
        yield server


def joined(parts, name):
    return "".join(part.get(name) or "" for part in parts)


def test_chat_completions_have_reasoning_content(thinking):
    reply = thinking.post(CHAT, {"messages": HELLO, "n": 2}).json
    for choice in reply["choices"]:
        assert choice["message"]["reasoning_content"] == THOUGHT
        assert choice["message"]["content"] == SAID
    chunks = thinking.post(CHAT, {"messages": HELLO, "stream": True, "n": 2}).events[:-1]
    for index in (0, 1):
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == index]
        assert joined(deltas, "reasoning_content") == THOUGHT
        assert joined(deltas, "content") == SAID
        assert sum("reasoning_content" in delta for delta in deltas) > 5


def test_thinking_that_the_request_begins_goes_on_as_thinking():
    turns = [*HELLO, {"role": "assistant", "content": "<think>\nWhat is"}]
    body = {"model": "tiny-random", "messages": turns}
    with EdgelmServer((TINY,), prelude=thinking_server(" the sea?\n</think>\n\nWater.")) as server:
        message = server.post(CHAT, body).json["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (" the sea?", "Water.")
        message = server.post("/api/chat", {**body, "stream": False}).json["message"]
        assert (message["thinking"], message["content"]) == (" the sea?", "Water.")
        output = server.post("/v1/responses", {"input": turns}).json["output"]
        assert [item["content"][0]["text"] for item in output] == [" the sea?", "Water."]


def test_usage_says_how_many_tokens_were_thought(thinking):
    reply = thinking.post(CHAT, {"messages": HELLO}).json
    thought = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 5 < thought < reply["usage"]["completion_tokens"] - 5
    body = {"messages": HELLO, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    usage = thinking.post(CHAT, body).events[-2]["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2 * thought}
    body = {"input": "What is the sea?"}
    response = thinking.post("/v1/responses", body).json
    events = thinking.post("/v1/responses", {**body, "stream": True}).events
    for usage in (response["usage"], events[-1]["response"]["usage"]):
        assert usage["output_tokens_details"] == {"reasoning_tokens": thought}


def test_an_answer_that_was_cut_off_while_it_thought_has_no_content(thinking):
    reply = thinking.post(CHAT, {"messages": HELLO, "max_tokens": 8}).json
    (choice,) = reply["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    assert THOUGHT.startswith(choice["message"]["reasoning_content"])
    assert reply["usage"]["completion_tokens"] == 8


def test_what_was_thought_earlier_is_taken_and_passed_over(thinking):
    turn = {"role": "assistant", "content": SAID}
    usage = [
        thinking.post(CHAT, {"messages": [*HELLO, {**turn, **more}, *HELLO]}).json["usage"]
        for more in (
            {},
            {"reasoning_content": THOUGHT},
            {"thinking": {"content": THOUGHT}, "cache_control": {}},
            {"reasoning_content": THOUGHT, "provider_specific_fields": {"citations": None}},  # litellm's
        )
    ]
    assert len({counts["prompt_tokens"] for counts in usage}) == 1
    body = {"model": "tiny-random", "messages": [*HELLO, {**turn, "thinking": THOUGHT}, *HELLO], "stream": False}
    assert thinking.post("/api/chat", body).json["prompt_eval_count"] == usage[0]["prompt_tokens"]


def test_a_template_that_reads_what_was_thought_earlier_gets_it():
    template = OPENING_TEMPLATE.replace("+ m.content", "+ (m.reasoning_content or '') + m.content")
    turn = {"role": "assistant", "content": SAID}
    with EdgelmServer((TINY,), prelude=thinking_server(template=template)) as server:

        def prompt_tokens(**more):
            messages = [*HELLO, {**turn, **more}, *HELLO]
            body = {"model": "tiny-random", "messages": messages, "stream": False}
            ollama = {name.replace("reasoning_content", "thinking"): text for name, text in more.items()}
            own = server.post(CHAT, {"messages": messages}).json["usage"]["prompt_tokens"]
            body["messages"] = [*HELLO, {**turn, **ollama}, *HELLO]
            assert server.post("/api/chat", body).json["prompt_eval_count"] == own
            return own

        assert prompt_tokens(reasoning_content=THOUGHT) > prompt_tokens(reasoning_content="") == prompt_tokens()
        messages = [*HELLO, {**turn, "reasoning": THOUGHT}, *HELLO]
        usage = server.post(CHAT, {"messages": messages}).json["usage"]
        assert usage["prompt_tokens"] == prompt_tokens(reasoning_content=THOUGHT)


def test_a_response_goes_back_to_the_template_as_one_turn():
    tool = {"name": "look"}
    function = {"name": "look", "arguments": "{}"}
    with EdgelmServer((TINY,), prelude=thinking_server("Blue.", CHANNELS_TEMPLATE)) as server:

        def input_tokens(*items):
            given = [*HELLO, *items, {"type": "function_call_output", "call_id": "1", "output": "blue"}]
            body = {"input": given, "tools": [{"type": "function", **tool}]}
            return server.post("/v1/responses", body).json["usage"]["input_tokens"]

        def prompt_tokens(**turn):
            calls = [{"id": "1", "type": "function", "function": function}]
            result = {"role": "tool", "tool_call_id": "1", "content": "blue"}
            messages = [*HELLO, {"role": "assistant", "tool_calls": calls, **turn}, result]
            body = {"messages": messages, "tools": [{"type": "function", "function": tool}]}
            return server.post(CHAT, body).json["usage"]["prompt_tokens"]

        thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": THOUGHT}], "summary": []}
        said = {"role": "assistant", "content": [{"type": "output_text", "text": SAID}]}
        call = {"type": "function_call", "call_id": "1", **function}
        assert input_tokens(call) == prompt_tokens()
        assert input_tokens(thought, call) == prompt_tokens(reasoning_content=THOUGHT) > prompt_tokens()
        assert input_tokens(thought, said, call) == prompt_tokens(content=SAID, reasoning_content=THOUGHT)
        assert input_tokens({"type": "reasoning"}, said, call) == prompt_tokens(content=SAID)
        assert input_tokens(said, thought, call) > input_tokens(said, call)


def test_ollama_s_messages_have_thinking(thinking):
    body = {"model": "tiny-random", "messages": HELLO}
    message = thinking.post("/api/chat", {**body, "stream": False}).json["message"]
    assert message == {"role": "assistant", "content": SAID, "thinking": THOUGHT}
    messages = [line["message"] for line in thinking.post("/api/chat", body).lines]
    assert (joined(messages, "thinking"), joined(messages, "content")) == (THOUGHT, SAID)


def test_a_model_that_thinks_unasked_may_be_asked_to(thinking):
    body = {"model": "tiny-random", "messages": HELLO, "stream": False}
    assert thinking.post("/api/chat", {**body, "think": True}).json["message"]["thinking"] == THOUGHT
    assert thinking.post(CHAT, {"messages": HELLO, "reasoning_effort": "low"}).status == 200


def test_ollama_s_generate_has_thinking_where_it_asks_the_chat_template(thinking):
    body = {"model": "tiny-random", "prompt": "Tell me."}
    answer = thinking.post("/api/generate", {**body, "stream": False}).json
    assert (answer["thinking"], answer["response"]) == (THOUGHT, SAID)
    lines = thinking.post("/api/generate", body).lines
    assert (joined(lines, "thinking"), joined(lines, "response")) == (THOUGHT, SAID)
    answer = thinking.post("/api/generate", {**body, "raw": True, "stream": False}).json
    assert answer["response"] == ANSWER.removeprefix("<think>\n")
    assert "thinking" not in answer


def test_completions_take_nothing_apart(thinking):
    reply = thinking.post("/v1/completions", {"prompt": "x", "max_tokens": 200}).json
    assert reply["choices"][0]["text"] == ANSWER.removeprefix("<think>\n")


def test_responses_have_an_item_of_reasoning(thinking):
    response = thinking.post("/v1/responses", {"input": "What is the sea?"}).json
    thought, message = response["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": THOUGHT}])
    assert message["content"][0]["text"] == SAID
    again = [{"role": "user", "content": "What is the sea?"}, *response["output"], {"role": "user", "content": "Why?"}]
    assert thinking.post("/v1/responses", {"input": again}).status == 200
    events = thinking.post("/v1/responses", {"input": "What is the sea?", "stream": True}).events
    for kind, text, place in (("reasoning_text", THOUGHT, 0), ("output_text", SAID, 1)):
        deltas = [event for event in events if event["type"] == f"response.{kind}.delta"]
        assert joined(deltas, "delta") == text
        assert {delta["output_index"] for delta in deltas} == {place}
        (done,) = (event for event in events if event["type"] == f"response.{kind}.done")
        assert done["text"] == text
    assert [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"] == [
        "reasoning",
        "message",
    ]
    without_ids = [
        [{**item, "id": ""} for item in output] for output in (response["output"], events[-1]["response"]["output"])
    ]
    assert without_ids[0] == without_ids[1]


def test_messages_have_a_block_of_thinking(thinking):
    body = {"messages": HELLO, "max_tokens": 500, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    message = thinking.post("/v1/messages", body).json
    thought, said = message["content"]
    assert (thought["type"], thought["thinking"], said) == ("thinking", THOUGHT, {"type": "text", "text": SAID})
    assert 5 < message["usage"]["output_tokens_details"]["thinking_tokens"] < message["usage"]["output_tokens"]
    events = thinking.post("/v1/messages", {**body, "stream": True}).events
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text"]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert (joined(deltas, "thinking"), joined(deltas, "text")) == (THOUGHT, SAID)
    assert joined(deltas, "signature") == thought["signature"]
    again = [*HELLO, {"role": "assistant", "content": message["content"]}, {"role": "user", "content": "Why?"}]
    assert thinking.post("/v1/messages", {**body, "messages": again}).status == 200


def test_a_template_reads_the_thinking_of_earlier_messages():
    template = OPENING_TEMPLATE.replace("+ m.content", "+ (m.reasoning_content or '') + m.content")
    with EdgelmServer((TINY,), prelude=thinking_server(template=template)) as server:

        def input_tokens(*blocks):
            turn = {"role": "assistant", "content": [*blocks, {"type": "text", "text": SAID}]}
            return server.post("/v1/messages/count_tokens", {"messages": [*HELLO, turn, *HELLO]}).json["input_tokens"]

        turn = {"role": "assistant", "content": SAID, "reasoning_content": THOUGHT}
        usage = server.post(CHAT, {"messages": [*HELLO, turn, *HELLO]}).json["usage"]
        thought = {"type": "thinking", "thinking": THOUGHT, "signature": "unsigned"}
        assert input_tokens(thought) == usage["prompt_tokens"] > input_tokens()


def test_a_response_that_was_cut_off_while_it_thought_has_an_empty_message(thinking):
    body = {"input": "What is the sea?", "max_output_tokens": 8}
    whole = thinking.post("/v1/responses", body).json
    streamed = thinking.post("/v1/responses", {**body, "stream": True}).events[-1]["response"]
    for response in (whole, streamed):
        assert response["status"] == "incomplete"
        assert [item["type"] for item in response["output"]] == ["reasoning", "message"]
        assert response["output"][1]["content"][0]["text"] == ""


def test_a_model_that_does_not_think_has_no_such_fields(serving):
    body = {"messages": HELLO, "max_tokens": 8}
    assert "reasoning_content" not in serving.post(CHAT, body).json["choices"][0]["message"]
    assert b"reasoning_content" not in serving.post(CHAT, {**body, "stream": True}).data
    body = {"model": "tiny-random", "messages": HELLO, "options": {"num_predict": 8}}
    assert b"thinking" not in serving.post("/api/chat", body).data


def test_a_model_that_thinks_calls_a_tool():
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    prelude = thinking_server(f"I look.\n</think>\n\n{call}", OPENING_TEMPLATE + "{#<tool_call>#}")
    tools = [{"type": "function", "function": {"name": "look"}}]
    with EdgelmServer((TINY,), prelude=prelude) as server:
        body = {"messages": HELLO, "tools": tools, "model": "tiny-random"}
        (choice,) = server.post(CHAT, body).json["choices"]
        message = server.post("/api/chat", {**body, "stream": False}).json["message"]
        lines = [line["message"] for line in server.post("/api/chat", body).lines]
    assert choice["finish_reason"] == "tool_calls"
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("I look.", None)
    (called,) = choice["message"]["tool_calls"]
    assert (called["function"]["name"], json.loads(called["function"]["arguments"])) == ("look", {})
    assert (message["thinking"], message["tool_calls"][0]["function"]["name"]) == ("I look.", "look")
    assert joined(lines, "thinking") == "I look."
    assert sum(len(line.get("tool_calls", ())) for line in lines) == 1


def test_gpt_oss_calls_a_tool_in_each_protocol():
    message = "<|channel|>{}<|message|>{}<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": "sea"}'
    answer = message.format("analysis", "I look.") + message.format("commentary", "Looking.") + call
    parameters = {"type": "object", "properties": {"at": {"enum": ["sea", "sky"]}}, "required": ["at"]}
    tool = {"name": "look", "parameters": parameters}
    with EdgelmServer((TINY,), prelude=thinking_server(answer, CHANNELS_TEMPLATE)) as server:
        body = {"messages": HELLO, "tools": [{"type": "function", "function": tool}], "model": "tiny-random"}
        (choice,) = server.post(CHAT, body).json["choices"]
        chunks = server.post(CHAT, {**body, "stream": True}).events[:-1]
        message = server.post("/api/chat", {**body, "stream": False}).json["message"]
        lines = [line["message"] for line in server.post("/api/chat", body).lines]
        request = {"input": "What is the sea?", "tools": [{"type": "function", **tool}]}
        response = server.post("/v1/responses", request).json
        events = server.post("/v1/responses", {**request, "stream": True}).events

    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("I look.", "Looking.")
    assert choice["finish_reason"] == "tool_calls"
    (called,) = choice["message"]["tool_calls"]
    assert called["function"] == {"name": "look", "arguments": '{"at": "sea"}'}

    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert (joined(deltas, "reasoning_content"), joined(deltas, "content")) == ("I look.", "Looking.")
    pieces = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert (joined(pieces, "name"), joined(pieces, "arguments")) == ("look", '{"at": "sea"}')

    for part in (message, {"tool_calls": [c for line in lines for c in line.get("tool_calls", ())]}):
        (called,) = part["tool_calls"]
        assert called["function"] == {"index": 0, "name": "look", "arguments": {"at": "sea"}}
    assert (message["thinking"], message["content"]) == ("I look.", "Looking.")
    assert (joined(lines, "thinking"), joined(lines, "content")) == ("I look.", "Looking.")

    for output in (response["output"], events[-1]["response"]["output"]):
        assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
        assert (output[2]["name"], output[2]["arguments"]) == ("look", '{"at": "sea"}')

"""Tools and structured output, whole and streamed. The model is random: only the constraint makes its answers fit."""

from __future__ import annotations

import json
import re

import pytest
from edgelm_server import CHAT

from edgelm.errors import MissingExtraError
from edgelm.generation_config import GenerationConfig
from edgelm.server.chat_messages import chat_job
from edgelm.testing import scripted_model

HELLO = [{"role": "user", "content": "Is it on?"}]
SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "$id": "Output Format",  # no URI, but griptape writes it
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "level": {"enum": ["low", "high"]}},
    "required": ["on", "level"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "switch", "description": "Switch it.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "nothing"}},
]


def chat(serving, **fields):
    return serving.post(CHAT, {"messages": HELLO, "max_tokens": 80, **fields})


def fits(text):
    value = json.loads(text)
    return set(value) == {"on", "level"} and isinstance(value["on"], bool) and value["level"] in ("low", "high")


def test_a_continued_text_keeps_to_a_schema_too(serving):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    body = {"prompt": ["Is it on?", "Is it off?"], "max_tokens": 80, "response_format": form}
    assert [fits(choice["text"]) for choice in serving.post("/v1/completions", body).json["choices"]] == [True, True]


@pytest.mark.parametrize("strict", [True, False, None, "true", "false"])
def test_an_answer_keeps_to_a_schema(serving, strict):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": strict}}
    choice = chat(serving, response_format=form).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert fits(choice["message"]["content"])
    chunks = chat(serving, response_format=form, stream=True).events[:-1]
    assert fits("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks))


@pytest.mark.parametrize("name", ["schema", "value"])  # of llama.cpp, and of huggingface_hub's client
def test_other_places_of_a_schema_are_taken(serving, name):
    choice = chat(serving, response_format={"type": "json_object", name: SCHEMA}).json["choices"][0]
    assert fits(choice["message"]["content"])


FORMS = [
    ({"grammar": 'root ::= "is " state # a bit\nstate ::= "on" | "off"'}, "is o(n|ff)"),  # llama.cpp's
    ({"json_schema": {"enum": ["on", "off"]}}, '"o(n|ff)"'),
    ({"guided_json": '{"enum": ["on", "off"]}'}, '"o(n|ff)"'),  # vLLM's older names
    ({"guided_regex": "[0-9]{3}x"}, "[0-9]{3}x"),
    ({"guided_choice": ["on", "off"]}, "o(n|ff)"),
    ({"guided_grammar": 'start: "is " STATE\nSTATE: "on" | "off"'}, "is o(n|ff)"),
    ({"structured_outputs": {"json": {"enum": ["on", "off"], "uniqueItems": True}}}, '"o(n|ff)"'),
    ({"structured_outputs": {"regex": "[0-9]{3}x", "choice": [], "disable_any_whitespace": True}}, "[0-9]{3}x"),
    ({"structured_outputs": {"choice": ["on", "off"], "json_object": False, "grammar": None}}, "o(n|ff)"),
    ({"structured_outputs": {"grammar": 'root ::= [a-c]{4} "."'}}, r"[a-c]{4}\."),
]


@pytest.mark.parametrize(("fields", "pattern"), FORMS)
def test_an_answer_keeps_to_a_form_in_another_servers_field(serving, fields, pattern):
    free = {"temperature": 1.5, "seed": 1, "max_tokens": 40, **fields}
    message = chat(serving, **free, response_format={"type": "text"}).json["choices"][0]["message"]
    text = serving.post("/v1/completions", {"prompt": "Is it on?", **free}).json["choices"][0]["text"]
    (item,) = serving.post("/v1/responses", {"input": "Is it on?", **free, "max_tokens": None}).json["output"]
    said = (message["content"], text, item["content"][0]["text"])
    assert [bool(re.fullmatch(pattern, text)) for text in said] == [True, True, True]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grammar": "root ::= ("}, "The grammar cannot be enforced: Expected"),
        ({"guided_grammar": "start: ("}, "The grammar cannot be enforced: "),
        ({"structured_outputs": {"regex": "a("}}, "The regular expression cannot be enforced: "),
        ({"guided_choice": [""]}, "none of them empty"),
        ({"structured_outputs": {"json_object": True}, "grammar": 'root ::= "x"'}, "exclude each other"),
        ({"grammar": 'root ::= "x"', "tools": TOOLS}, "Beside tools an answer can have a JSON schema"),
    ],
)
def test_a_form_that_is_none_is_refused(serving, fields, words):
    reply = chat(serving, **fields)
    assert (reply.status, words in reply.json["error"]["message"]) == (400, True), reply.data


def test_json_objects_are_asked_for_in_vllms_field_too(serving):
    answers = [
        chat(serving, max_tokens=9, **form).json["choices"][0]["message"]["content"]
        for form in ({"structured_outputs": {"json_object": True}}, {"response_format": {"type": "json_object"}})
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("strict", [True, False, None])
def test_what_cannot_be_enforced_is_passed_over_where_a_schema_is_not_strict(serving, strict):
    pair = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 1, "uniqueItems": True}
    schema = {"oneOf": [pair, {"type": "string", "pattern": "^(?!x)", "const": "x"}]}
    form = {"name": "x", "schema": schema, "strict": strict}
    as_text = {"type": "json_schema", "json_schema": form | {"strict": "true"}}
    replies = [
        chat(serving, response_format={"type": "json_schema", "json_schema": form}),
        serving.post("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", **form}}}),
    ]
    if strict:
        for reply in (*replies, chat(serving, response_format=as_text)):
            assert reply.status == 400
            assert "The JSON schema cannot be enforced: " in reply.json["error"]["message"]
        return
    ollama = {"model": "tiny-random", "messages": HELLO, "format": schema, "stream": False}
    texts = [
        replies[0].json["choices"][0]["message"]["content"],
        replies[1].json["output"][0]["content"][0]["text"],
        serving.post("/api/chat", ollama).json["message"]["content"],
    ]
    assert set(texts) <= {'["a"]', '["b"]', '"x"'}


def test_ollama_takes_a_schema_as_its_format(serving):
    body = {"model": "tiny-random", "messages": HELLO, "format": SCHEMA, "stream": False}
    assert fits(serving.post("/api/chat", body).json["message"]["content"])
    body = {"model": "tiny-random", "prompt": "x", "format": SCHEMA, "stream": False}
    assert fits(serving.post("/api/generate", body).json["response"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "switch"}}])
def test_a_tool_that_must_be_called_is_called(serving, choice):
    reply = chat(serving, tools=TOOLS[:1], tool_choice=choice, parallel_tool_calls=False).json["choices"][0]
    assert reply["finish_reason"] == "tool_calls"
    assert reply["message"]["content"] is None
    (call,) = reply["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "switch")
    assert fits(call["function"]["arguments"])


def test_a_name_may_be_as_long_as_a_call_of_it_is_read(serving):
    name = "mcp__" + "x" * 251
    tools = [{"type": "function", "function": {"name": name}}]
    (call,) = chat(serving, tools=tools, tool_choice="required", max_tokens=400).json["choices"][0]["message"][
        "tool_calls"
    ]
    assert call["function"]["name"] == name
    tools[0]["function"]["name"] += "x"
    assert "name has 257 characters; it must have 1 to 256." in chat(serving, tools=tools).json["error"]["message"]


def test_a_mark_for_anthropics_cache_changes_no_prompt(serving):
    """LiteLLM takes it beside a function and in it."""
    mark, tool = {"cache_control": {"type": "ephemeral"}}, TOOLS[0]
    marked = {**tool, **mark, "function": tool["function"] | mark}
    plain, other = (chat(serving, tools=[given], max_tokens=1).json["usage"] for given in (tool, marked))
    assert other["prompt_tokens"] == plain["prompt_tokens"]


@pytest.mark.parametrize("name", ["switch", "nothing"])
def test_tools_that_are_not_allowed_are_shown_and_not_called(serving, name):
    """A random model would call either; what it is shown stays, so that the prompt's beginning can be used again."""
    choice = {"mode": "required", "tools": [{"type": "function", "function": {"name": name}}]}
    fields = {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": choice}}
    shown = chat(serving, tools=TOOLS, tool_choice="required", max_tokens=1).json["usage"]["prompt_tokens"]
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": name}]}
    body = {"input": HELLO, "tools": tools, "tool_choice": choice, "max_output_tokens": 80}
    for seed in range(2):
        reply = chat(serving, **fields, seed=seed, temperature=1.5).json
        assert {call["function"]["name"] for call in reply["choices"][0]["message"]["tool_calls"]} == {name}
        assert reply["usage"]["prompt_tokens"] == shown
        response = serving.post("/v1/responses", {**body, "seed": seed, "temperature": 1.5}).json
        assert {item["name"] for item in response["output"]} == {name}
        assert (response["tool_choice"], response["usage"]["input_tokens"]) == (choice, shown)

    choice["mode"] = "auto"
    form = {"format": {"type": "json_schema", "schema": {"const": "x"}}}
    (item,) = serving.post("/v1/responses", {**body, "text": form}).json["output"]
    assert item.get("name") == name or item["content"][0]["text"] == '"x"'


def test_tools_are_not_allowed_where_nothing_holds_calls_to_them(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "switch"}}]}
    body = {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}
    with pytest.raises(MissingExtraError, match=r"tool_choice\.allowed_tools needs 'llguidance'"):
        chat_job(scripted_model(""), body, [], GenerationConfig(), {})


def test_a_call_streams_its_name_first_and_then_its_arguments(serving):
    fields = {"tools": TOOLS[:1], "tool_choice": "required", "parallel_tool_calls": False, "stream": True}
    choices = [chunk["choices"][0] for chunk in chat(serving, **fields).events[:-1]]
    deltas = [delta for choice in choices for delta in choice["delta"].get("tool_calls", ())]
    assert deltas[0]["id"]
    assert (deltas[0]["type"], deltas[0]["function"]["name"]) == ("function", "switch")
    assert not any("id" in delta for delta in deltas[1:])
    assert fits("".join(delta["function"]["arguments"] for delta in deltas))
    assert choices[-1]["finish_reason"] == "tool_calls"


# The first steps of the patches that Codex writes.
PATCH = """start: begin line~2 end
begin: "*** Begin" LF // of the patch
end: "*** End" LF?
line: ("+" | "-") /[ab"\\\\]{3}/ LF -> line
%import common.LF
"""
PATCHES = r'\*\*\* Begin\n([+-][ab"\\]{3}\n){2}\*\*\* End\n?'


def custom(syntax, definition):
    grammar = {"syntax": syntax, "definition": definition}
    return {"type": "custom", "custom": {"name": "edit", "format": {"type": "grammar", "grammar": grammar}}}


@pytest.mark.parametrize(
    ("syntax", "definition", "pattern"), [("lark", PATCH, PATCHES), ("regex", '"[^"]{2}', '"[^"]{2}')]
)
def test_the_input_of_a_custom_tool_is_a_text_of_its_grammar(serving, syntax, definition, pattern):
    choice = {"type": "custom", "custom": {"name": "edit"}}
    fields = {"tools": [TOOLS[1], custom(syntax, definition)], "tool_choice": choice, "temperature": 1.5, "seed": 2}
    fields["max_tokens"] = 200
    (call,) = chat(serving, **fields).json["choices"][0]["message"]["tool_calls"]
    assert (call["type"], call["custom"].keys(), bool(call["id"])) == ("custom", {"name", "input"}, True)
    assert re.fullmatch(pattern, call["custom"]["input"])
    deltas = [
        delta
        for chunk in chat(serving, **fields, stream=True).events[:-1]
        for delta in chunk["choices"][0]["delta"].get("tool_calls", ())
    ]
    assert deltas[0]["custom"]["name"] == "edit"
    assert "".join(delta["custom"]["input"] for delta in deltas) == call["custom"]["input"]

    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "x"},
    ]
    assert chat(serving, messages=messages, tools=fields["tools"], max_tokens=3).status == 200

    tool = {"type": "custom", "name": "edit", "format": {"type": "grammar", "syntax": syntax, "definition": definition}}
    body = {
        "input": "Is it on?",
        "tools": [{"type": "function", **TOOLS[1]["function"]}, tool],
        "temperature": 1.5,
        "seed": 2,
    }
    body["tool_choice"] = {"type": "custom", "name": "edit"}
    (item,) = serving.post("/v1/responses", body).json["output"]
    assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "edit", call["custom"]["input"])
    events = {event["type"]: event for event in serving.post("/v1/responses", body | {"stream": True}).events}
    assert events["response.custom_tool_call_input.done"]["input"] == item["input"]
    assert events["response.completed"]["response"]["output"][0]["input"] == item["input"]
    items = [
        {"role": "user", "content": "x"},
        item,
        {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "y"},
    ]
    assert serving.post("/v1/responses", {"input": items, "tools": body["tools"], "max_output_tokens": 3}).status == 200


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "custom"}, "tools[0].custom is missing."),
        ({"type": "custom", "custom": {"name": "x", "format": {"type": "grammar"}}}, "format.grammar is missing."),
        (custom("lark", 'start: "(" start ")" | "x"'), "its rule 'start' leads back to itself. Write what repeats"),
        (custom("lark", 'start: "a" %ignore " "'), "has '%ignore"),
        (custom("lark", "start: a"), "has no rule 'a'"),
        (custom("lark", 'start: "a"\nstart: "b"'), "has two rules 'start'"),
        (custom("lark", 'start: "ab".."c"'), "has '..\"c\"', which is not read there"),
        (custom("lark", 'start: "\\q"'), "which is no text"),
        (custom("lark", "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"\nstart: r0'), "too large"),
        (custom("lark", "".join(f"r{i}: r{i + 1}\n" for i in range(200)) + 'r200: "a"\nstart: r0'), "levels deep"),
        (custom("regex", r"[[:alpha:]\[]+[a-z&&[^aeiou]]"), "has '&&' inside of a set: sets and operators there"),
        (custom("lark", "start: /[[a-z]_]/"), "has '[' inside of a set"),
        (custom("regex", "a(?=b)"), "The JSON schema of a tool, or in a grammar, cannot be enforced: "),
    ],
)
def test_a_custom_tool_that_cannot_be_held_to_its_grammar_is_refused(serving, tool, words):
    reply = chat(serving, tools=[tool])
    assert (reply.status, words in reply.json["error"]["message"]) == (400, True), reply.data


def test_the_outcome_of_a_call_goes_back_to_the_model(serving):
    call = {"id": "call_1", "type": "function", "function": {"name": "switch", "arguments": '{"on": true}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    assert chat(serving, messages=messages, tools=TOOLS, max_tokens=5).status == 200
    assert chat(serving, messages=messages, max_tokens=5).status == 200


def test_ollama_streams_a_call_whole(serving):
    body = {"model": "tiny-random", "messages": HELLO, "tools": TOOLS[:1], "options": {"num_predict": 40}}
    lines = serving.post("/api/chat", body).lines
    assert lines[-1]["done"]
    calls = [{"function": {"name": "switch", "arguments": {"on": True}}}]
    messages = [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_name": "switch", "content": "done"},
    ]
    assert serving.post("/api/chat", body | {"messages": messages, "stream": False}).json["done"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "'other'"),
        *(
            ({"tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}, words)
            for tools, allowed, words in (
                (TOOLS, {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "z"}}]}, "the tool 'z'"),
                (TOOLS, {"mode": "auto", "tools": [{"type": "custom"}]}, "allowed_tools.tools[0].custom is missing."),
                (TOOLS, {"mode": "auto", "tools": []}, "it must have 1 to 128"),
                (TOOLS, None, "tool_choice.allowed_tools is missing."),
                ([], {"mode": "auto", "tools": [TOOLS[1]]}, "there are no tools."),
            )
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "Two tools have the same name"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name has 0 characters"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type is 'retrieval'; it must be one of function, custom."),
        *(
            ({"response_format": {"type": "json_schema", **more}}, "response_format.json_schema is missing.")
            for more in ({}, {"json_schema": None})
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "nothing",
        ),
        (
            # Not the system's refusal of a thread, though in its words.
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "can't start new thread"}},
                }
            },
            "can't start new thread",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_an_answer_begins(serving, fields, words):
    reply = chat(serving, **fields, stream=True)
    assert reply.status == 400, reply.data
    assert words in reply.json["error"]["message"]


def test_a_schema_that_is_too_large_to_follow_is_the_requests_fault(serving):
    parts = [{"type": "object", "properties": {f"{k}{i}": {"type": "string"} for i in range(700)}} for k in "pq"]
    schema = {"anyOf": parts}
    reply = chat(serving, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert reply.status == 400, reply.data
    assert "Of an object with hundreds of properties, require all" in reply.json["error"]["message"]


def test_beside_tools_an_answer_has_its_form_or_calls_one(serving):
    """A random model would say anything else."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"name": "x", "schema": schema, "strict": True}
    fields = {"tools": TOOLS, "response_format": {"type": "json_schema", "json_schema": form}, "temperature": 1.5}
    for seed in range(6):
        message = chat(serving, **fields, seed=seed).json["choices"][0]["message"]
        if calls := message.get("tool_calls"):
            assert calls[0]["function"]["name"] in {tool["function"]["name"] for tool in TOOLS}
        else:
            assert json.loads(message["content"]).keys() == {"ok"}

    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    body = {"model": "tiny-random", "input": "x", "tools": tools, "text": {"format": {"type": "json_schema", **form}}}
    items = serving.post("/v1/responses", body).json["output"]
    assert items[0]["type"] == "function_call" or json.loads(items[0]["content"][0]["text"]).keys() == {"ok"}

    body = {"model": "tiny-random", "messages": HELLO, "tools": TOOLS, "format": schema, "stream": False}
    message = serving.post("/api/chat", body).json["message"]
    assert message.get("tool_calls") or json.loads(message["content"]).keys() == {"ok"}


def test_a_form_that_cannot_be_enforced_beside_tools_is_named_as_the_form(serving):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    error = chat(serving, tools=TOOLS, response_format=form).json["error"]
    assert error["message"].startswith("The JSON schema cannot be enforced: ")

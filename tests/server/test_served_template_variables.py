"""What a request says to a chat template, in both protocols, on the tiny model with a template that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from edgelm_server import CHAT, HELLO, TINY, EdgelmServer
from thinking_template import THINKING, system_message

from edgelm import GenerationConfig, LanguageModel, load
from edgelm.text.chat_template import ChatTemplate

LIMIT = 12
PRELUDE = f"""
from edgelm.text.chat_template import ChatTemplate
ChatTemplate.load = classmethod(lambda template, folder: template({THINKING!r}))
"""


@pytest.fixture(scope="module")
def thinker() -> LanguageModel:
    model = load(TINY)
    model.chat_template = ChatTemplate(THINKING)
    return model


@pytest.fixture(scope="module")
def thinking_server() -> Iterator[EdgelmServer]:
    with EdgelmServer((TINY, "--context-shift", "0"), prelude=PRELUDE) as server:
        yield server


def expected(model: LanguageModel, variables: dict[str, object]) -> tuple[str, int]:
    answer = model.chat(HELLO, GenerationConfig(max_new_tokens=LIMIT), template_variables=variables)
    return answer.text, answer.usage.prompt_tokens


OPENAI: list[tuple[dict[str, Any], dict[str, object], str]] = [
    ({}, {}, "on, effort: medium"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}, "off, effort: medium"),
    ({"chat_template_kwargs": None, "reasoning_effort": None}, {}, "on, effort: medium"),
    ({"reasoning_effort": "none"}, {"enable_thinking": False, "reasoning_effort": "none"}, "off, effort: none"),
    *(
        ({"reasoning_effort": word}, {"reasoning_effort": word}, f"on, effort: {word}")
        for word in ("minimal", "low", "medium", "high", "xhigh", "max")
    ),
    (
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False, "unread": [{}]}},
        {"enable_thinking": False, "reasoning_effort": "high"},
        "off, effort: high",
    ),
]


@pytest.mark.parametrize(("fields", "variables", "said"), OPENAI)
def test_openais_fields_reach_the_template(thinking_server, thinker, fields, variables, said):
    tokens = thinking_server.post("/tokenize", {"messages": HELLO, **fields}).json["tokens"]
    assert system_message(thinker, tokens) == f"Thinking: {said}"
    reply = thinking_server.post(CHAT, {"messages": HELLO, "max_tokens": LIMIT, **fields}).json
    answer = (reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"])
    assert answer == expected(thinker, variables)
    assert reply["usage"]["prompt_tokens"] == len(tokens)


def test_a_models_description_names_what_its_template_reads(thinking_server, serving):
    named = {"add_generation_prompt", "enable_thinking", "messages", "reasoning_effort"}
    assert thinking_server.get("/v1/models/tiny-random").json["template_variables"] == sorted(named)
    assert "enable_thinking" not in serving.get("/v1/models/tiny-random").json["template_variables"]


@pytest.mark.parametrize(
    ("reasoning", "variables"),
    [
        (None, {}),
        ({"effort": None, "summary": None}, {}),
        ({"effort": "none"}, {"enable_thinking": False, "reasoning_effort": "none"}),
        ({"effort": "high"}, {"reasoning_effort": "high"}),
    ],
)
def test_the_effort_of_a_response_reaches_the_template(thinking_server, thinker, reasoning, variables):
    body = {"input": "Hello", "max_output_tokens": LIMIT, "reasoning": reasoning}
    reply = thinking_server.post("/v1/responses", body).json
    answer = (reply["output"][0]["content"][0]["text"], reply["usage"]["input_tokens"])
    assert answer == expected(thinker, variables)
    assert reply["reasoning"] == {"effort": (reasoning or {}).get("effort"), "summary": None}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "on, effort: medium"),
        ({"thinking": {"type": "adaptive"}}, "on, effort: medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "on, effort: medium"),
        ({"thinking": {"type": "disabled"}}, "off, effort: medium"),
        ({"output_config": {"effort": "low"}}, "on, effort: low"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, "off, effort: max"),
    ],
)
def test_anthropics_fields_reach_the_template(thinking_server, thinker, fields, said):
    on, _, effort = said.partition(", effort: ")
    text, prompt_tokens = expected(thinker, {"enable_thinking": on == "on", "reasoning_effort": effort})
    message = thinking_server.post("/v1/messages", {"messages": HELLO, "max_tokens": LIMIT, **fields}).json
    assert message["content"] == [{"type": "text", "text": text}]
    counted = thinking_server.post("/v1/messages/count_tokens", {"messages": HELLO, **fields}).json
    assert counted == {"input_tokens": prompt_tokens}


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"reasoning": {"effort": None}}, None),
        ({"reasoning": {"effort": "low", "exclude": False}}, "low"),
        ({"reasoning": {"enabled": True}}, "medium"),
        ({"reasoning": {"enabled": False, "effort": "low"}}, "none"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "high"),
    ],
)
def test_openrouters_form_of_an_effort_is_the_same(thinking_server, fields, effort):
    def answer(**more):
        body = {"messages": HELLO, "max_tokens": LIMIT, **more}
        reply = thinking_server.post(CHAT, body).json
        return reply["choices"][0]["message"]["content"], reply["usage"]["prompt_tokens"]

    assert answer(**fields) == answer(reasoning_effort=effort)


OLLAMA: list[tuple[dict[str, Any], dict[str, object]]] = [
    ({}, {}),
    ({"think": None}, {}),
    ({"think": True}, {"enable_thinking": True}),
    ({"think": False}, {"enable_thinking": False}),
    *(({"think": word}, {"reasoning_effort": word}) for word in ("low", "medium", "high")),
]


@pytest.mark.parametrize(("fields", "variables"), OLLAMA)
def test_think_reaches_the_template(thinking_server, thinker, fields, variables):
    body = {"model": "tiny-random", "stream": False, "options": {"num_predict": LIMIT}, **fields}
    chat = thinking_server.post("/api/chat", body | {"messages": HELLO}).json
    generated = thinking_server.post("/api/generate", body | {"prompt": "Hello"}).json
    assert (chat["message"]["content"], chat["prompt_eval_count"]) == expected(thinker, variables)
    assert (generated["response"], generated["prompt_eval_count"]) == expected(thinker, variables)


def test_a_model_whose_template_knows_thinking_says_so(thinking_server, serving):
    for server, capabilities in ((thinking_server, ["thinking"]), (serving, [])):
        shown = server.post("/api/show", {"model": "tiny-random"}).json
        assert shown["capabilities"] == ["completion", "tools", *capabilities]


@pytest.mark.parametrize("think", [True, "low"])
@pytest.mark.parametrize("left_out", [{"raw": True}, {"suffix": "x"}])
def test_think_needs_the_template(thinking_server, think, left_out):
    reply = thinking_server.post("/api/generate", {"model": "tiny-random", "prompt": "x", "think": think, **left_out})
    assert reply.status == 400
    assert reply.json["error"] == "think does not go with raw or suffix: the chat template is left out."


REFUSED = [
    ({"reasoning_effort": "low"}, "reasoning_effort", "is not supported: the chat template of tiny-random reads none"),
    ({"reasoning_effort": "lots"}, "reasoning_effort", "it must be one of none, minimal, low, medium, high"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", "chat_template_kwargs is []; it must be an object"),
    *(
        ({"chat_template_kwargs": {name: "x"}}, None, f"variable '{name}' is set by edgelm itself; leave it out.")
        for name in ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
    ),
]


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
def test_what_the_template_cannot_be_told_is_refused(serving, path, fields, param, words):
    reply = serving.post(path, {"messages": HELLO, **fields})
    assert (reply.status, reply.json["error"]["param"]) == (400, param)
    assert words in reply.json["error"]["message"]


def test_asking_a_model_that_does_not_think_for_no_thinking_changes_nothing(serving, tiny):
    answer = tiny.chat(HELLO, GenerationConfig(max_new_tokens=LIMIT)).text
    body = {"messages": HELLO, "max_tokens": LIMIT}
    for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": True}}):
        reply = serving.post(CHAT, body | fields).json
        assert reply["choices"][0]["message"]["content"] == answer
    body = {"model": "tiny-random", "messages": HELLO, "stream": False, "options": {"num_predict": LIMIT}}
    assert serving.post("/api/chat", body | {"think": False}).json["message"]["content"] == answer


@pytest.mark.parametrize("name", ["range", "namespace", "raise_exception", "loop", "self", "", "edgelm step", "\ud83d"])
def test_a_variable_of_any_name_breaks_nothing(thinking_server, name):
    body = {
        "messages": HELLO,
        "max_tokens": 1,
        "chat_template_kwargs": {name: [{"a": "<|im_end|>\ud83d"}, 1e300, None]},
    }
    assert thinking_server.post(CHAT, body).status == 200


def test_half_a_character_in_a_variable_is_refused(thinking_server):
    body = {"messages": HELLO, "chat_template_kwargs": {"reasoning_effort": "\ud83d"}}
    reply = thinking_server.post(CHAT, body)
    assert (reply.status, "surrogate" in reply.json["error"]["message"]) == (400, True)

"""Ollama's protocol, against the library's own answers."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import time
import weakref
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from edgelm_server import CHAT, TINY, EdgelmServer
from starlette.requests import Request

from edgelm import GenerationConfig, __version__
from edgelm.completion import Chunk, TokenLogprob, ToolCall
from edgelm.decoding.answer import join
from edgelm.server.endpoint import Call
from edgelm.server.logprobs import LogprobWriter
from edgelm.server.metrics import Metrics
from edgelm.server.model_pool import ModelPool
from edgelm.server.ollama import OllamaWriter
from edgelm.server.ollama_models import list_running
from edgelm.server.options import ServerOptions
from edgelm.server.sse import to_json

HELLO = [{"role": "user", "content": "Hello there"}]
SLOW_LOAD = """
import time
from edgelm import loading
load = loading.load
loading.load = lambda *given: (time.sleep(0.3), load(*given))[1]
"""
OPTIONS = {"num_predict": 12, "num_ctx": 4096}


def test_a_chat_streams_lines_and_ends_with_the_counts(serving, tiny):
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=12))
    reply = serving.post("/api/chat", {"model": "tiny-random", "messages": HELLO, "options": OPTIONS})
    assert reply.headers["content-type"] == "application/x-ndjson"
    *lines, last = reply.lines
    assert "".join(line["message"]["content"] for line in lines) == expected.text
    assert not any(line["done"] for line in lines)
    assert (last["done"], last["done_reason"]) == (True, "length")
    assert last["eval_count"] == 12
    assert last["prompt_eval_count"] == expected.usage.prompt_tokens


def test_a_chat_is_whole_where_that_is_asked_for(serving, tiny):
    expected = tiny.chat(HELLO, GenerationConfig(max_new_tokens=12))
    body = {"model": "tiny-random:latest", "messages": HELLO, "options": OPTIONS, "stream": False}
    answer = serving.post("/api/chat", body).json
    assert answer["message"] == {"role": "assistant", "content": expected.text}
    assert answer["done"]
    assert answer["total_duration"] > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"messages": HELLO, "options": OPTIONS, "stream": False}),
        ("/api/chat", {"messages": HELLO, "options": OPTIONS}),
        ("/api/generate", {"prompt": "Hello", "options": OPTIONS, "stream": False}),
        ("/api/embed", {"input": "Hello"}),
    ],
)
def test_the_time_that_a_model_takes_to_load_is_told_apart(path, body):
    with EdgelmServer(prelude=SLOW_LOAD) as server:
        answer = server.post(path, {"model": "tiny-random", **body}).lines[-1]
    parts = [answer.get(f"{part}_duration", 0) for part in ("load", "prompt_eval", "eval")]
    assert parts[0] >= 3e8
    assert answer["total_duration"] >= sum(parts)


@pytest.mark.parametrize(
    "name", ["num_gpu", "logits_all", "embedding_only", "penalize_newline", "keep_alive", "max_workers"]
)
def test_options_of_the_program_that_runs_a_model_change_nothing(serving, name):
    body = {"model": "tiny-random", "messages": HELLO, "stream": False}
    plain, given = (
        serving.post("/api/chat", body | {"options": OPTIONS | more}).json["message"] for more in ({}, {name: True})
    )
    assert given == plain


def test_options_have_ollamas_names(serving, tiny):
    config = GenerationConfig(max_new_tokens=12, temperature=0.9, repetition_penalty=1.2, seed=3, top_k=50)
    options = {"num_predict": 12, "temperature": 0.9, "repeat_penalty": 1.2, "seed": 3, "top_k": 50}
    body = {"model": "tiny-random", "messages": HELLO, "options": options, "stream": False}
    assert serving.post("/api/chat", body).json["message"]["content"] == tiny.chat(HELLO, config).text


def test_mirostat_is_ollamas_mode_2(serving, tiny):
    def answer(**options):
        options |= {"num_predict": 24, "temperature": 1.5, "seed": 3, "top_k": 0, "top_p": 1.0}
        body = {"model": "tiny-random", "messages": HELLO, "options": options, "stream": False}
        return serving.post("/api/chat", body).json["message"]["content"]

    plain = GenerationConfig(max_new_tokens=24, temperature=1.5, seed=3)
    held = plain.replace(mirostat_tau=1.0, mirostat_eta=0.5)
    assert answer(mirostat=2, mirostat_tau=1.0, mirostat_eta=0.5) == tiny.chat(HELLO, held).text
    assert answer(mirostat=2) == tiny.chat(HELLO, plain.replace(mirostat_tau=5.0)).text
    assert answer(mirostat=0, mirostat_tau=1.0) == tiny.chat(HELLO, plain).text != tiny.chat(HELLO, held).text


def test_a_seed_of_minus_one_is_a_fresh_one_as_ollama_has_it(serving):
    options = {"num_predict": 24, "temperature": 1.5, "seed": -1}
    body = {"model": "tiny-random", "messages": HELLO, "options": options, "stream": False}
    first, second = (serving.post("/api/chat", body).json["message"]["content"] for _ in range(2))
    assert first != second


def test_generate_answers_a_prompt_with_the_template_or_raw(serving, tiny):
    body = {"model": "tiny-random", "prompt": "The sea", "options": OPTIONS, "stream": False}
    config = GenerationConfig(max_new_tokens=12)
    assert serving.post("/api/generate", body | {"raw": True}).json["response"] == tiny.generate("The sea", config).text
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The sea"}]
    assert (
        serving.post("/api/generate", body | {"system": "Be brief."}).json["response"] == tiny.chat(turns, config).text
    )


def test_a_request_that_asks_nothing_loads_the_model(serving):
    for path, extra in (("/api/generate", {}), ("/api/chat", {"messages": []})):
        reply = serving.post(path, {"model": "tiny-random", "keep_alive": "5m", **extra})
        assert (reply.json["done"], reply.json["done_reason"]) == (True, "load")
    (running,) = serving.get("/api/ps").json["models"]
    assert (running["name"], running["context_length"]) == ("tiny-random:latest", 1024)


def test_the_context_that_an_answer_has_may_be_sent_back(serving):
    body = {"model": "tiny-random", "prompt": "The sea", "options": OPTIONS}
    context = serving.post("/api/generate", body | {"stream": False}).json["context"]
    assert context == serving.post("/api/generate", body).lines[-1]["context"] == []
    assert serving.post("/api/generate", body | {"context": context}).status == 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_log_probabilities_are_those_of_openais_interface(serving, path):
    wanted = {"logprobs": True, "top_logprobs": 2}
    body = {"messages": HELLO, "max_tokens": 12, **wanted}
    expected = serving.post(CHAT, body).json["choices"][0]["logprobs"]["content"]
    body = {"model": "tiny-random", "messages": HELLO, "prompt": "Hello there", "options": OPTIONS, **wanted}
    del body["prompt" if path == "/api/chat" else "messages"]
    assert serving.post(path, body | {"stream": False}).json["logprobs"] == expected
    lines = serving.post(path, body).lines
    assert [token for line in lines for token in line.get("logprobs", [])] == expected
    assert len(expected) == 12
    assert "logprobs" not in serving.post(path, body | {"logprobs": False, "top_logprobs": 0, "stream": False}).json


def test_an_empty_list_asks_for_nothing(serving):
    body = {"model": "tiny-random", "options": OPTIONS, "stream": False}
    turn = {"role": "user", "content": "The sea"}
    expected = serving.post("/api/chat", body | {"messages": [turn]}).json["message"]
    assert serving.post("/api/chat", body | {"messages": [turn | {"images": []}]}).json["message"] == expected
    reply = serving.post("/api/generate", body | {"prompt": "The sea", "images": [], "context": [], "tools": []})
    assert reply.json["response"] == expected["content"]


def test_fields_that_clients_in_go_always_write_say_nothing_where_they_are_empty(serving):
    always = {"system": "", "template": "", "options": None}
    assert serving.post("/api/show", {"model": "tiny-random", "name": "", "verbose": False, **always}).status == 200
    body = {"model": "tiny-random", "stream": False, "options": OPTIONS}
    turn = {"role": "user", "content": "The sea"}
    expected = serving.post("/api/chat", body | {"messages": [turn]}).json["message"]["content"]
    always = {
        "suffix": "",
        "system": "",
        "template": "",
        "format": "",
        "_debug_render_only": False,
        "truncate": False,
        "shift": True,
        "options": OPTIONS | {"tfs_z": 1.0},
    }
    assert serving.post("/api/generate", body | {"prompt": "The sea", **always}).json["response"] == expected
    always = {"messages": [turn], "_debug_render_only": False, "truncate": True, "shift": False}
    assert serving.post("/api/chat", body | always).json["message"]["content"] == expected


def test_a_conversation_that_outgrows_the_context_goes_on_unless_the_request_refuses(serving, tiny):
    def ask(path, **body):
        options = {"num_predict": 12}
        return serving.post(path, {"model": "tiny-random", "stream": False, "options": options, **body}).json

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "word " * 600}, *HELLO]
    config = GenerationConfig(max_new_tokens=12, context_shift=0)
    expected = tiny.chat(turns, config)
    answer = ask("/api/chat", messages=turns)
    assert answer["message"]["content"] == expected.text
    assert answer["prompt_eval_count"] == expected.usage.prompt_tokens <= 1024
    raw = ask("/api/generate", prompt="word " * 600, raw=True, truncate=True, shift=None)
    assert raw["response"] == tiny.generate("word " * 600, config).text
    for keep, shift in ((40, 40), (-1, 512)):
        raw = ask("/api/generate", prompt="word " * 600, raw=True, options={"num_predict": 12, "num_keep": keep})
        assert raw["response"] == tiny.generate("word " * 600, config.replace(context_shift=shift)).text
    for refusing in ({"truncate": False}, {"shift": False}):
        assert "maximum context length is 1024" in ask("/api/chat", messages=turns, **refusing)["error"]


def test_an_answer_that_fills_the_context_ends_there(serving):
    """Another goes on, and forgets the beginning of its text."""
    body = {"model": "tiny-random", "prompt": "The sea " * 250, "raw": True, "stream": False}
    for limit, is_full in ((-2, True), (300, False)):
        answer = serving.post("/api/generate", body | {"options": {"num_predict": limit, "temperature": 0}}).json
        read, written = answer["prompt_eval_count"], answer["eval_count"]
        assert (read + written == 1024 + 1) == is_full  # nothing is computed behind the last token
        assert (written == 300) != is_full
        assert answer["done_reason"] == "length"


@pytest.mark.parametrize(("path", "longest"), [("/api/chat", "max_output_tokens"), ("/api/generate", "max_tokens")])
def test_settings_beside_the_options_count_where_the_options_have_none(serving, path, longest):
    def answer(**fields):
        asked = {"messages": HELLO} if path == "/api/chat" else {"prompt": "Hello there", "user": "me", "echo": False}
        reply = serving.post(path, {"model": "tiny-random", "stream": False, **asked, **fields})
        assert reply.status == 200, reply.data
        return reply.json["message"]["content"] if path == "/api/chat" else reply.json["response"]

    beside = {"temperature": 1.5, "top_p": 0.9, "frequency_penalty": 0.5, "presence_penalty": 0.5, "stop": ["x", "y"]}
    inside = {"num_predict": 30, "seed": 3, **beside}
    expected = answer(options=inside)
    assert answer(options={"seed": 3}, **{longest: 30}, **beside) == expected
    assert answer(options={"seed": 3}, **{longest: 30}) != expected
    assert answer(options=inside, **{longest: 2}, temperature=0, top_p=1, stop=[]) == expected


@pytest.mark.parametrize(("choice", "called"), [("required", True), ("none", False)])
def test_a_choice_of_tools_is_kept_to(serving, choice, called):
    switch = {"name": "switch", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
    tools = {"tools": [{"type": "function", "function": switch}], "tool_choice": choice}
    body = {"model": "tiny-random", "messages": HELLO, "stream": False, "options": {"num_predict": 60}, **tools}
    calls = serving.post("/api/chat", body).json["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls][:1] == ["switch"] * called
    assert [call["function"]["index"] for call in calls] == list(range(len(calls)))
    assert len({call["id"] for call in calls}) == len(calls)


@pytest.mark.parametrize(
    "arguments",
    [*(f'{{"x": {value}}}' for value in ("1e999", "NaN", "[" * 10**6 + "]" * 10**6, "9" * 5_000, "[1")), "[1]", "5"],
)
def test_a_call_whose_arguments_no_json_object_can_hold_is_left_out_and_the_answer_is_whole(tiny, arguments):
    calls = [ToolCall(id=name, name=name, arguments=given) for name, given in (("f", arguments), ("g", '{"x": 1}'))]
    answer = replace(tiny.chat(HELLO, GenerationConfig(max_new_tokens=1)), tool_calls=tuple(calls))
    writer = OllamaWriter(model="tiny", is_chat=True, load_seconds=0.0, logprobs=None)

    message = json.loads(to_json(writer.whole([answer])))["message"]
    assert [call["function"] for call in message["tool_calls"]] == [{"index": 0, "name": "g", "arguments": {"x": 1}}]


def test_a_stream_keeps_no_log_probabilities_that_it_has_sent(tiny):
    last = join(list(tiny.stream("Hello", GenerationConfig(max_new_tokens=1, logprobs=2))))
    sent: list[weakref.ref[TokenLogprob]] = []
    kept: list[bool] = []

    async def chunks():
        for _ in range(3):
            token = TokenLogprob(id=65, text="a", logprob=-1.0)
            sent.append(weakref.ref(token))
            yield 0, Chunk(text="a", token_ids=(65,), logprobs=(token,))
            del token
        kept.extend(reference() is not None for reference in sent)
        yield 0, Chunk(text="", token_ids=(), finish_reason="stop", usage=last.usage, timings=last.timings)

    async def lines():
        writer = OllamaWriter(
            model="tiny", is_chat=True, load_seconds=0.0, logprobs=LogprobWriter.of(tiny, {"logprobs": True})
        )
        return [json.loads(line) async for line in writer.stream(SimpleNamespace(chunks=chunks))]

    *pieces, end = asyncio.run(lines())
    assert [piece["logprobs"][0]["logprob"] for piece in pieces] == [-1.0] * 3
    assert end["done"]
    assert kept == [False, False, True]  # the newest is in use


def test_calls_and_results_have_what_clients_add_to_them(serving):
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"index": 0, "name": "f", "arguments": {}}}
    turns = [*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}]
    body = {"model": "tiny-random", "stream": False, "options": OPTIONS}
    replies = [
        serving.post("/api/chat", body | {"messages": [*turns, {"role": "tool", "content": "done", **name}]})
        for name in ({"tool_name": "f", "tool_call_id": "call_1"}, {"name": "f"})
    ]
    assert [reply.status for reply in replies] == [200, 200]
    assert replies[0].json["message"] == replies[1].json["message"]


def test_a_content_that_is_left_out_is_an_empty_one(serving):
    def answer(**said):
        turns = [*HELLO, {"role": "assistant", **said}, {"role": "user", "content": "x"}]
        reply = serving.post(
            "/api/chat", {"model": "tiny-random", "stream": False, "options": OPTIONS, "messages": turns}
        )
        assert reply.status == 200, reply.data
        return reply.json["message"]

    assert answer() == answer(content=None) == answer(content="")


def test_keep_alive_says_how_long_a_model_stays(serving):
    def left() -> float:
        (model,) = serving.get("/api/ps").json["models"]
        return (datetime.fromisoformat(model["expires_at"]) - datetime.now(UTC)).total_seconds()

    nothing = {"model": "tiny-random"}
    assert serving.post("/api/generate", nothing | {"keep_alive": "1h30m"}).json["done_reason"] == "load"
    assert 5000 < left() <= 5400
    body = {"model": "tiny-random", "messages": HELLO, "options": OPTIONS, "stream": False, "keep_alive": 100}
    assert serving.post("/api/chat", body).status == 200
    assert left() <= 100
    assert serving.post("/api/generate", nothing | {"keep_alive": -1}).status == 200
    assert left() > 10**8
    assert serving.post("/api/generate", nothing | {"keep_alive": "999999999h"}).status == 200
    assert left() > 10**8
    assert serving.post("/api/generate", nothing | {"keep_alive": "0s"}).json["done_reason"] == "unload"
    assert serving.get("/api/ps").json["models"] == []
    for path, text in (("/api/embed", "input"), ("/api/embeddings", "prompt")):
        assert serving.post(path, nothing | {text: "x", "keep_alive": 50}).status == 200
        assert left() <= 50
    assert serving.post("/api/chat", body | {"keep_alive": 0}).status == 200
    for _ in range(100):
        if not serving.get("/api/ps").json["models"]:
            break
        time.sleep(0.1)
    assert serving.get("/api/ps").json["models"] == []


def test_the_time_at_which_an_unused_model_goes_does_not_move(serving):
    serving.post("/api/generate", {"model": "tiny-random", "keep_alive": 100})

    def end() -> datetime:
        return datetime.fromisoformat(serving.get("/api/ps").json["models"][0]["expires_at"])

    first = end()
    time.sleep(0.3)
    assert (end() - first).total_seconds() < 0.25


@pytest.mark.parametrize("keep_alive", [math.inf, 1e15])
def test_a_model_that_the_server_keeps_for_ever_is_listed_with_a_date(keep_alive):
    async def main() -> dict[str, Any]:
        (await pool.acquire("tiny-random")).release()
        request = Request({"type": "http"})
        answer = await list_running(Call(request=request, body={}, options=options, pool=pool, metrics=Metrics()))
        return json.loads(answer.body)

    options = ServerOptions(keep_alive=keep_alive)
    pool = ModelPool((TINY,), options)
    (model,) = asyncio.run(main())["models"]
    assert datetime.fromisoformat(model["expires_at"]).year > 2050


def test_models_are_listed_and_shown(serving):
    (model,) = serving.get("/api/tags").json["models"]
    assert (model["name"], model["model"], model["details"]["format"]) == (*["tiny-random:latest"] * 2, "onnx")
    assert len(model["digest"]) == 64
    assert model["details"]["parameter_size"] == "0.03M"
    shown = serving.post("/api/show", {"model": "tiny-random"}).json
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["llama.context_length"] == 1024
    attention = 32 * 32 + 32 * 16 + 32 * 16 + 32 * 32
    assert shown["model_info"]["general.parameter_count"] == 320 * 32 + 2 * (attention + 3 * 32 * 64 + 2 * 32) + 32
    assert "<|im_start|>" in shown["template"]


def test_a_broken_config_leaves_the_models_size_out_and_the_list_whole(own_library):
    folder = own_library / "models" / "broken"
    shutil.copytree(TINY, folder)
    (folder / "config.json").write_text("{}")
    with EdgelmServer(()) as server:
        (model,) = server.get("/api/tags").json["models"]
    assert (model["name"], model["details"]["parameter_size"]) == ("broken:latest", "")
    assert any("config.json" in line for line in server.log)


def test_the_tag_that_clients_of_ollama_write_is_taken_in_every_interface(serving):
    name = "tiny-random:latest"
    assert serving.get(f"/v1/models/{name}").json["id"] == "tiny-random"
    assert serving.get(f"/tokenizer_info?model={name}").json["model"] == "tiny-random"
    assert serving.post("/api/show", {"model": name}).status == 200
    answer = serving.post(CHAT, {"model": name, "messages": HELLO, "max_tokens": 2}).json
    assert answer["model"] == "tiny-random"
    assert serving.get("/v1/models/tiny-random:8b").status == 404


@pytest.mark.parametrize("name", ["tiny-random", "tiny-random:latest"])
@pytest.mark.parametrize("field", ["model", "name"])
def test_pulling_a_model_that_is_here_fetches_nothing_and_succeeds(serving, name, field):
    reply = serving.post("/api/pull", {field: name, "insecure": False, "stream": True})
    assert (reply.status, reply.lines) == (200, [{"status": "success"}])
    assert reply.data.endswith(b"\n")  # Codex reads whole lines


def test_the_version_is_that_of_the_protocol(serving):
    told = serving.get("/api/version").json
    assert tuple(map(int, told["version"].split("."))) >= (0, 13, 4)  # Codex refuses an older one
    assert told["edgelm"] == __version__


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/chat", {"model": "nothing", "messages": HELLO}, 404, "There is no model 'nothing' here."),
        ("/api/chat", {"messages": HELLO}, 400, "model is missing."),
        ("/api/show", {}, 400, "model is missing."),
        ("/api/pull", {"model": "nothing"}, 404, "There is no model 'nothing' here."),
        *(
            (
                "/api/chat",
                {"model": "tiny-random", "messages": HELLO, "think": think},
                400,
                "think is not supported: the",
            )
            for think in (True, "low")
        ),
        ("/api/generate", {"model": "tiny-random", "prompt": "x", "think": True}, 400, "think is not supported: the"),
        ("/api/chat", {"model": "tiny-random", "messages": HELLO, "think": "max"}, 400, "one of low, medium, high"),
        (
            "/api/chat",
            {"model": "tiny-random", "messages": [{"role": "user", "content": "x", "images": ["aGk="]}]},
            400,
            "messages[0].images is not supported: these models read text alone.",
        ),
        ("/api/generate", {"model": "tiny-random", "prompt": "x", "context": [1]}, 400, "send the conversation to"),
        ("/api/generate", {"model": "tiny-random", "prompt": "x", "tools": [{}]}, 400, "/api/chat has them."),
        (
            "/api/generate",
            {"model": "tiny-random", "prompt": "x", "options": {"mirostat": 1}},
            400,
            "options.mirostat is 1; it must be one of 0, 2",
        ),
        (
            "/api/generate",
            {"model": "tiny-random", "options": {"tfs_z": 0.9}},
            400,
            "tfs_z is not supported: use top_p or",
        ),
        (
            "/api/generate",
            {"model": "tiny-random", "options": {"logit_bias": "5:100"}},
            400,
            "options.logit_bias is not supported: /v1/chat/completions has it.",
        ),
        (
            "/api/generate",
            {"model": "tiny-random", "options": {"reasoning_effort": "low"}},
            400,
            "options.reasoning_effort is not supported: use think,",
        ),
        ("/api/generate", {"model": "tiny-random", "prompt": "x", "echo": True}, 400, "/v1/completions has it."),
        ("/api/generate", {"model": "tiny-random", "keep_alive": "soon"}, 400, "keep_alive is 'soon'; write seconds"),
        ("/api/generate", {"model": "tiny-random", "keep_alive": "1" * 39 + "x"}, 400, "write seconds, or a time as"),
        (
            "/api/generate",
            {"model": "tiny-random", "template": "{{ .Prompt }}"},
            400,
            "the model has its own; send raw",
        ),
        (
            "/api/chat",
            {"model": "tiny-random", "messages": HELLO, "_debug_render_only": True},
            400,
            "_debug_render_only is not supported: /tokenize shows how a conversation is read.",
        ),
        ("/api/generate", {"model": "tiny-random", "prompt": "x", "top_logprobs": 2}, 400, "needs logprobs: true."),
        (
            "/api/show",
            {"model": "tiny-random", "system": "x"},
            400,
            "system is not supported: a model is shown as it is.",
        ),
        ("/api/nothing", {}, 404, "There is nothing at '/api/nothing'. /openapi.json has all paths"),
    ],
)
def test_errors_have_ollamas_form(serving, path, body, status, words):
    reply = serving.post(path, body)
    assert reply.status == status
    assert words in reply.json["error"]

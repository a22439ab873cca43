"""The clients that people use, as they are on PyPI and npm, against `edgelm serve` with the real model."""

from __future__ import annotations

import pytest

# Their environments are made within the first test of each.
pytestmark = [pytest.mark.real_model, pytest.mark.timeout(900)]

PERSON = ["age", "name"]


def tokyo(*answers: str) -> bool:
    """Tell whether all answers are the same one, and it is the right one.

    Of each of its tokens the model is so sure that no rounding makes it another one: the least distance to the next
    likely one is 0.8 nats. France's capital is nearer to other words, 0.08 nats.
    """
    return len({answer.strip() for answer in answers}) == 1 and "Tokyo" in answers[0]


@pytest.mark.clients("openai")
def test_openai_for_python(run):
    told = run("use_openai.py")
    assert told["models"] == [told["model"]] == ["smollm2-135m-instruct"]
    assert tokyo(told["whole"], told["streamed"], told["events"], told["response"], told["response_events"])
    assert told["usage"]
    assert told["stream_usage"]
    assert told["tool"] == ["tool_calls", "person"]
    assert told["arguments"] == told["structured"] == PERSON
    assert told["response_status"] in ("completed", "incomplete")
    assert told["completion"][0] == 4
    assert told["embeddings"] == [1.0, 1.0]
    assert (told["not_found"], told["bad"], told["unauthorized"]) == (
        "model_not_found",
        "temperature",
        "invalid_api_key",
    )


@pytest.mark.clients("openai")
def test_openai_agents(run):
    told = run("use_openai_agents.py")
    assert tokyo(told["chat"], told["responses"])
    assert told["chat_output"] == told["responses_output"] == [1, "City"]


@pytest.mark.clients("node")
def test_openai_for_node(run):
    told = run("use_openai.mjs")
    assert told["models"] == ["smollm2-135m-instruct"]
    assert tokyo(told["whole"], told["streamed"], told["final"], told["response"])
    assert (told["tool"], told["arguments"]) == ("person", PERSON)
    assert told["not_found"] == [404, "model_not_found"]


@pytest.mark.clients("anthropic")
def test_anthropic_for_python(run):
    told = run("use_anthropic.py")
    assert told["models"] == [told["model"]] == ["smollm2-135m-instruct"]
    assert tokyo(told["whole"], told["streamed"], told["final_text"])
    assert told["final"] == [True, True]
    assert told["counted"]
    assert told["tool"] == ["tool_use", "person"]
    assert told["input"] == told["streamed_input"] == told["structured"] == PERSON
    assert told["after"] == "assistant"
    assert told["tools_run"] == ["tool_use", "tool_use"]
    assert (told["not_found"], told["bad"], told["unauthorized"]) == (
        "not_found_error",
        "invalid_request_error",
        "authentication_error",
    )


@pytest.mark.clients("node")
def test_anthropic_for_node(run):
    told = run("use_anthropic.mjs")
    assert told["models"] == ["smollm2-135m-instruct"]
    assert tokyo(told["whole"], told["streamed"], told["final"])
    assert (told["tool"], told["input"]) == (["tool_use", "person"], PERSON)
    assert told["tools_run"] == ["tool_use", "tool_use"]
    assert told["not_found"] == [404, "not_found_error"]


@pytest.mark.clients("node")
def test_ai_sdk(run):
    told = run("use_ai_sdk.mjs")
    assert tokyo(told["whole"], told["streamed"])
    assert told["usage"]
    assert told["reason"] in ("stop", "length")
    assert (told["tool"], told["arguments"], told["structured"]) == ("person", PERSON, PERSON)


@pytest.mark.clients("python")
def test_ollama(run):
    told = run("use_ollama.py")
    assert told["models"] == ["smollm2-135m-instruct:latest"]
    assert told["context"] > 1000
    assert tokyo(told["whole"], told["streamed"], told["generated"])
    assert told["structured"] == PERSON
    assert told["tools"] in ("stop", "length")
    assert told["embeddings"] == 2
    assert told["not_found"] == 404


@pytest.mark.clients("python")
def test_llm(run):
    told = run("use_llm.py")
    assert tokyo(told["streamed"], told["whole"])
    assert told["structured"] == PERSON
    assert told["continued"]


@pytest.mark.clients("python")
def test_instructor(run):
    assert set(run("use_instructor.py").values()) == {"int"}


@pytest.mark.clients("python")
def test_pydantic_ai(run):
    told = run("use_pydantic_ai.py")
    assert tokyo(told["whole"], told["streamed"], told["responses"])
    assert told["tool"] == told["native"] == "Person"


@pytest.mark.clients("python")
def test_langchain_openai(run):
    told = run("use_langchain.py")
    assert tokyo(told["whole"], told["streamed"])
    assert (told["tool"], told["json_schema"], told["function_calling"]) == ("note", "int", "int")


@pytest.mark.clients("lm-eval")
def test_lm_eval(run):
    # All three right choices are far likelier than the wrong ones.
    assert run("use_lm_eval.py") == {"acc": 1.0, "n": 3}

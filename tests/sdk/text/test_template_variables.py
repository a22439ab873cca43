"""Variables of a chat template: who gives them, where they go, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from thinking_template import system_message, thinking_model

import edgelm
from edgelm import ChatSession, Engine, GenerationConfig, LanguageModel, Message
from edgelm.errors import ChatTemplateError, ConfigError
from edgelm.testing import ScriptedDecoder, scripted_model
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.template_environment import GENERATION_MARKS

QUESTION = [Message(role="user", content="Hello")]
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
QUIET = {"enable_thinking": False, "reasoning_effort": "low"}
SAID = "Thinking: off, effort: low"


def asked(model: LanguageModel) -> str:
    """Return what the template said first in the prompt that was computed last."""
    assert isinstance(model.session, ScriptedDecoder)
    (begun,) = [ids for ids in model.session.forwarded if len(ids) > 1]
    return system_message(model, begun)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (None, "Thinking: on, effort: medium"),
        ({}, "Thinking: on, effort: medium"),
        (QUIET, SAID),
        ({"reasoning_effort": "high", "other": [1, {"a": None}]}, "Thinking: on, effort: high"),
    ],
)
def test_the_template_reads_what_is_given_by_name(variables: dict[str, object] | None, said: str) -> None:
    model = thinking_model()
    assert system_message(model, model.encode_chat(QUESTION, template_variables=variables)) == said
    ids = model.encode_chat(QUESTION, [TOOL], variables)
    assert system_message(model, ids) == said


def test_every_way_to_an_answer_takes_them() -> None:
    def session(model: LanguageModel) -> ChatSession:
        session = ChatSession(model)
        session.restore([*QUESTION, Message(role="assistant", content="Hi")])
        return session

    ways: list[Any] = [
        lambda model: model.chat(QUESTION, template_variables=QUIET),
        lambda model: edgelm.join(model.stream_chat(QUESTION, template_variables=QUIET)),
        lambda model: edgelm.join(session(model).send("Why?", template_variables=QUIET)),
        lambda model: edgelm.join(session(model).regenerate(template_variables=QUIET)),
        lambda model: edgelm.join(session(model).edit(0, "Why?", template_variables=QUIET)),
    ]
    for way in ways:
        model = thinking_model()
        assert way(model).text == "The sea is blue."
        assert asked(model) == SAID
    model = thinking_model()
    with Engine(model) as engine:
        completion = edgelm.join(engine.submit_chat(QUESTION, template_variables=QUIET))
    assert completion.usage.prompt_tokens == len(model.encode_chat(QUESTION, template_variables=QUIET))
    assert completion.usage.prompt_tokens != len(model.encode_chat(QUESTION))


def test_a_context_shift_keeps_the_opening_that_the_variables_make() -> None:
    model, config = thinking_model(), GenerationConfig(context_shift=0)
    for tools in (None, [TOOL]):
        ids, settings, _ = model.chat_request(QUESTION, config, tools, "auto", QUIET)
        assert settings.context_shift is not None
        kept = model.tokenizer.decode(ids[: settings.context_shift], skip_control_tokens=False)
        assert kept.startswith(f"<|im_start|>system\n{SAID}<|im_end|>")
        assert kept.endswith("<|im_start|>user\n")


def test_a_value_never_becomes_a_control_token() -> None:
    model = thinking_model()
    ids = model.encode_chat(QUESTION, template_variables={"reasoning_effort": "<|im_end|>"})
    assert ids.count(model.tokenizer.control_tokens["<|im_end|>"]) == 2
    assert "effort: <|im_end|><|im_end|>" in model.tokenizer.decode(ids, skip_control_tokens=False)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        *(
            ({name: "x"}, f"The chat template's variable '{name}' is set by edgelm itself; leave it out.")
            for name in (*GENERATION_MARKS, "messages", "tools", "add_generation_prompt", "bos_token", "eos_token")
        ),
        ("enable_thinking", "template_variables is 'enable_thinking'; it must be a mapping of names to values"),
        ({1: True}, "template_variables is {1: True}; it must be a mapping of names to values"),
    ],
)
def test_what_is_no_variable_of_others_is_refused(variables: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        scripted_model("x").stream_chat(QUESTION, template_variables=variables)
    assert message in str(refused.value)


def test_a_value_is_plain_data() -> None:
    with pytest.raises(ChatTemplateError, match=r"enable_thinking\['a'\] is a object"):
        scripted_model("x").encode_chat(QUESTION, template_variables={"enable_thinking": {"a": object()}})


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}", {"enable_thinking"}),
        ("{% set thinking = thinking | default(false) %}{{ thinking }}", {"thinking"}),
        ("{% set thinking = false %}{{ thinking }} and enable_thinking {# reasoning_effort #}", set()),
        ("{% for m in messages if effort %}{{ m.thinking }}{% break %}{% endfor %}", {"messages", "effort"}),
        ("{% macro a(b) %}{{ b }}{{ effort }}{% endmacro %}{{ a(1) }}", {"effort"}),
        ("{% set ns = namespace(thinking=1) %}{{ ns.thinking }}{{ raise_exception('x') }}", set()),
        ("{% if tools %}{{ 'x' | center(10**9) }}{% endif %}", {"tools"}),
        ("{% generation %}{{ effort }}{% endgeneration %}", {"effort"}),
    ],
)
def test_a_template_knows_what_it_reads_from_outside(source: str, names: set[str]) -> None:
    assert ChatTemplate(source).variables == names

"""What a model thinks before it answers, apart from the answer, however the text is cut."""

from __future__ import annotations

import itertools
import json
import sys
from functools import partial
from typing import Literal

import pytest
from thinking_model import (
    ANSWER,
    CHANNELS_TEMPLATE,
    OPENING_TEMPLATE,
    SAID,
    TEMPLATE,
    THOUGHT,
    model_with_marks,
    thinking_model,
)

from edgelm.batching.engine import Engine
from edgelm.chat_session import ChatSession
from edgelm.completion import Message
from edgelm.decoding.answer import join
from edgelm.generation_config import GenerationConfig
from edgelm.structure.constraint import Constraint
from edgelm.structure.reasoning import FORMATS, Reasoning
from edgelm.structure.tool_formats import tool_format
from edgelm.testing import scripted_model

QUESTION = [Message(role="user", content="What is the sea?")]
OPENED_ANSWER = ANSWER.removeprefix("<think>\n")
CHANNEL, FINAL = "<|channel|>", "<|end|><|start|>assistant<|channel|>final<|message|>"  # gpt-oss
HARMONY = "<|start|>assistant<|channel|>"
CALL = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "look"}}]
AT = {"type": "object", "properties": {"at": {"enum": ["sea", "sky"]}}, "required": ["at"]}
LOOK_AT = [{"type": "function", "function": {"name": "look", "parameters": AT}}]
LOOK_CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}


with_channels = partial(model_with_marks, marks=(*FORMATS[1].control_tokens, "<|call|>"))


def split(
    pieces: list[str] | str, *, is_open: bool = False, ends: tuple[str, ...] = (), row: int = 0
) -> tuple[str, str]:
    splitter = Reasoning(format=FORMATS[row], is_open=is_open, ends=ends).splitter()
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(thought for thought, _ in parts), "".join(said for _, said in parts)


@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nHm, 2 < 3.\n\n</think>\n\nYes. </think>", False, ("Hm, 2 < 3.", "Yes. </think>")),
        ("\n<think>Hm.</think> Yes.\n", False, ("Hm.", "Yes.\n")),
        ("<think>\n\n</think>\n\n Yes.", False, ("", "Yes.")),
        ("Hm.\n</think>\nYes.", True, ("Hm.", "Yes.")),
        ("<think>Hm.</think>Yes.", True, ("Hm.", "Yes.")),  # the model writes the mark again
        ("Hm </thin </thinner> \n</thi", True, ("Hm </thin </thinner> \n</thi", "")),
        ("<think>\nHm ", False, ("Hm", "")),
        ("<think>\nHm.\n</think>\n\n", False, ("Hm.", "")),
        ("  {}\n", False, ("", "  {}\n")),
        (" Hm.</think> <think>Yes.", False, ("", " Hm.</think> <think>Yes.")),
        ("\n<thin", False, ("", "\n<thin")),
        ("\n<thin", True, ("<thin", "")),
        ("", False, ("", "")),
        (" \n", True, ("", "")),
        (" \n", False, ("", " \n")),
    ],
)
def test_where_a_text_is_cut_changes_nothing(text: str, is_open: bool, expected: tuple[str, str]) -> None:
    cuts = range(len(text) + 1)
    for first, second in itertools.combinations_with_replacement(cuts, 2):
        assert split([text[:first], text[first:second], text[second:]], is_open=is_open) == expected
    assert split(text, is_open=is_open) == expected  # character by character


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{CHANNEL}analysis<|message|>Hm, <| 2 < 3.{FINAL}Yes. <|end", ("Hm, <| 2 < 3.", "Yes. <|end")),
        ("<|channel|>final<|message|>Yes.", ("", "Yes.")),
        (f"{CHANNEL}analysis<|message|>Hm.{FINAL}", ("Hm.", "")),
        (f"{CHANNEL}analysis<|message|>Hm.{FINAL[:-9]}", ("Hm.", "")),
        (f"{CHANNEL}analysis<|message|>Hm.<|end|>Yes.", ("Hm.", "Yes.")),
        (f"{CHANNEL}analysis<|message|>Hm <|en", ("Hm <|en", "")),
        (f"{CHANNEL}analysis<|message|>A.<|end|>{HARMONY}analysis<|message|>B.{FINAL}C.", ("A.\n\nB.", "C.")),
        (f"{CHANNEL}analysis<|message|>A.<|end|>{HARMONY}analysis<|message|>\n B.{FINAL}C.", ("A.\n\nB.", "C.")),
        (f"{CHANNEL}commentary<|message|>I look.{FINAL}Yes.", ("", "I look.\n\nYes.")),
        (f"{CHANNEL}commentary<|message|>I look. <|en", ("", "I look. <|en")),
        (f"{CHANNEL}analysis to=python code<|message|>1 + 1", ("1 + 1", "")),
        (f"{CHANNEL}commentary to=functions.f<|message|>{{}}", ("", " to=functions.f<|message|>{}")),
        (
            "to=functions.f<|channel|>commentary json<|message|>1",
            ("", " to=functions.f<|channel|>commentary json<|message|>1"),
        ),
        (f"{CHANNEL}final", ("", "")),
        (f"{CHANNEL}final{'s' * 400}", ("", f"{CHANNEL}final{'s' * 400}")),
        ("<|cha", ("", "<|cha")),
        ("to be", ("", "to be")),
        ("Yes.", ("", "Yes.")),
    ],
)
def test_channels_come_apart_too_wherever_they_are_cut(text: str, expected: tuple[str, str]) -> None:
    for first in range(min(len(text), 150) + 1):
        for second in range(first, first + 21, 1 + first % 2):  # so that one mark or header is cut twice
            assert split([text[:first], text[first:second], text[second:]], row=1) == expected
    assert split(text, row=1) == expected


@pytest.mark.parametrize("make", [thinking_model, partial(model_with_marks, marks=FORMATS[1].control_tokens)])
def test_the_channels_of_gpt_oss_are_known_by_its_template(make) -> None:
    template = TEMPLATE.replace("</think>", f"{CHANNEL}analysis<|message|>")
    completion = make(f"{CHANNEL}analysis<|message|>{THOUGHT}{FINAL}{SAID}", template).chat(QUESTION)
    assert (completion.reasoning, completion.text) == (THOUGHT, SAID)
    assert make(f"{CHANNEL}final<|message|>{SAID}", template).chat(QUESTION).text == SAID


@pytest.mark.parametrize("number", [2, 3, 4])  # of Seed-OSS, Gemma 4 and Magistral
@pytest.mark.parametrize("is_token", [False, True])
def test_other_marks_are_known_by_the_template(number: int, is_token: bool) -> None:
    format_ = FORMATS[number]
    answer, template = (
        text.replace("<think>", format_.start).replace("</think>", format_.end)
        for text in (ANSWER, TEMPLATE + "{#<think>#}")
    )
    make = partial(model_with_marks, marks=format_.control_tokens) if is_token else thinking_model
    completion = make(answer, template).chat(QUESTION)
    assert (completion.reasoning, completion.text) == (THOUGHT, SAID)
    assert (
        not make(SAID, template.replace("assistant\n", f"assistant\n{format_.start}\n{format_.end}"))
        .chat(QUESTION)
        .reasoning
    )


def test_channels_go_on_with_a_thought_that_the_request_began() -> None:
    for text, expected in ((f" so.{FINAL}Yes.", (" so.", "Yes.")), (f"So.{FINAL}Yes.", ("So.", "Yes."))):
        for cut in range(len(text) + 1):
            splitter = Reasoning(format=FORMATS[1], is_open=True, has_begun=True).splitter()
            parts = [splitter.push(text[:cut]), splitter.push(text[cut:]), splitter.flush()]
            assert tuple(map("".join, zip(*parts, strict=True))) == expected


def test_a_text_that_begins_a_constraint_at_the_start_alone_ends_no_thinking() -> None:
    model = thinking_model(template=OPENING_TEMPLATE)
    form = Constraint.choices(["yes"])
    for at_start, ends in ((True, ()), (False, ("A:",))):
        config = GenerationConfig(constraint=form.starting_after("A:", at_start=at_start))
        _, _, reasoning = model.chat_prompt(QUESTION, config)
        assert reasoning is not None
        assert (reasoning.is_open, tuple(reasoning.ends)) == (True, ends)


def test_no_half_of_a_mark_is_ever_shown() -> None:
    splitter = Reasoning(format=FORMATS[0], is_open=False).splitter()
    parts = [splitter.push(char) for char in "<think>\nA </b>\n</think>\n\nB"]
    assert [part for part in parts if part != ("", "")] == [("A", ""), (" </b", ""), (">", ""), ("", "B")]


def test_a_text_that_begins_a_constraint_ends_the_thinking_and_is_answer() -> None:
    text = "Hm. Answer: yes</think>"
    for cut in range(len(text) + 1):
        pieces = [text[:cut], text[cut:]]
        assert split(pieces, is_open=True, ends=("Answer: ", "wer")) == ("Hm. Ans", "wer: yes</think>")
        assert split(pieces, is_open=True, ends=("Answer: ", "</think>")) == ("Hm.", "Answer: yes</think>")
        assert split(["Hm.</think>", *pieces], is_open=True, ends=("Answer: ",)) == ("Hm.", text)


@pytest.mark.parametrize("make", [thinking_model, model_with_marks, with_channels])
@pytest.mark.parametrize(
    ("answer", "template", "last"),
    [
        (ANSWER, TEMPLATE, "</think>"),
        (OPENED_ANSWER, OPENING_TEMPLATE, "</think>"),
        (f"{CHANNEL}analysis<|message|>{THOUGHT}{FINAL}{SAID}", CHANNELS_TEMPLATE, "<|end|>"),
        (SAID, TEMPLATE, None),
        (SAID, CHANNELS_TEMPLATE, None),
    ],
)
def test_the_usage_says_how_many_tokens_were_thought(make, answer: str, template: str, last: str | None) -> None:
    model = make(answer, template)
    completion = model.chat(QUESTION)

    def has_ended(count: int) -> bool:
        return last in model.tokenizer.decode(completion.token_ids[:count], skip_control_tokens=False)

    expected = next(filter(has_ended, itertools.count())) if last else 0
    assert completion.usage.reasoning_tokens == expected
    with Engine(model) as engine:
        assert join(engine.submit_chat(QUESTION)).usage.reasoning_tokens == expected
    cut_off = model.chat(QUESTION, GenerationConfig(max_new_tokens=max(expected - 1, 1)))
    assert cut_off.usage.reasoning_tokens == max(expected - 1, 0)
    assert model.generate("The sea").usage.reasoning_tokens == 0


@pytest.mark.parametrize("make", [thinking_model, model_with_marks])
@pytest.mark.parametrize(
    ("answer", "template"),
    [
        (ANSWER, TEMPLATE),
        (OPENED_ANSWER, OPENING_TEMPLATE),
        (OPENED_ANSWER, OPENING_TEMPLATE.replace(".split('</think>')[-1]", "")),  # as OLMo 3's, with one mark alone
    ],
)
def test_an_answer_to_a_conversation_comes_without_what_was_thought(make, answer: str, template: str) -> None:
    model = make(answer, template)
    completion = model.chat(QUESTION)
    assert (completion.reasoning, completion.text) == (THOUGHT, SAID)
    assert completion.message == {"role": "assistant", "content": SAID}
    assert completion.usage.completion_tokens == len(completion.token_ids)
    chunks = list(model.stream_chat(QUESTION))
    assert sum(bool(chunk.reasoning) for chunk in chunks) > 5
    assert sum(bool(chunk.text) for chunk in chunks) > 5
    assert not any(chunk.reasoning and chunk.text for chunk in chunks)
    with Engine(model) as engine:
        assert join(engine.submit_chat(QUESTION)).reasoning == THOUGHT
        assert not join(engine.submit("What is the sea?")).reasoning


@pytest.mark.parametrize("make", [thinking_model, model_with_marks])
@pytest.mark.parametrize("template", [TEMPLATE, OPENING_TEMPLATE])
@pytest.mark.parametrize(
    ("begun", "answer", "expected"),
    [
        ("<think>\nWhat is", " the sea?\n</think>\n\nWater.", (" the sea?", "Water.")),
        ("<think>\n", " Hm.\n</think>\n\nWater.", ("Hm.", "Water.")),
        ("<think>One.</think>\n<think>Two", " three.</think>Water.", (" three.", "Water.")),
        ("<think>\nWhat is", " the sea", (" the sea", "")),
        ("<think>\nHm.\n</think>\n\nThe sea", " is </think> blue.", ("", " is </think> blue.")),
        ("The sea", " is </think> blue.", ("", " is </think> blue.")),
    ],
)
def test_an_answer_goes_on_with_the_thinking_that_the_conversation_ends_in(
    make, template: str, begun: str, answer: str, expected: tuple[str, str]
) -> None:
    turns = [*QUESTION, Message(role="assistant", content=begun)]
    completion = make(answer, template).chat(turns)
    assert (completion.reasoning, completion.text) == expected
    parts = [{"type": "text", "text": begun[:3]}, {"type": "text", "text": begun[3:]}]
    assert make(answer, template).chat([*QUESTION, {"role": "assistant", "content": parts}]).text == expected[1]


def test_a_prompt_that_is_no_conversation_is_continued_as_it_was() -> None:
    assert thinking_model().generate("The sea").text == ANSWER
    completion = model_with_marks().generate("The sea")
    assert completion.text == ANSWER.replace("<think>", "").replace("</think>", "")
    assert not completion.reasoning


def test_a_template_without_thinking_changes_nothing() -> None:
    model = scripted_model(ANSWER)
    completion = model.chat(QUESTION)
    assert (completion.text, completion.reasoning) == (ANSWER, "")
    settings = model.generation_config.replace(begins_text=True)
    assert model.chat_request(QUESTION, None, None, "auto")[1:] == (settings, None)


def test_marks_that_are_to_be_visible_stay_in_the_text() -> None:
    config = GenerationConfig(visible_control_tokens=["<think>", "</think>"])
    completion = model_with_marks().chat(QUESTION, config)
    assert (completion.text, completion.reasoning) == (ANSWER, "")


def test_an_answer_that_was_cut_off_while_it_thought_is_thinking() -> None:
    completion = model_with_marks().chat(QUESTION, GenerationConfig(max_new_tokens=12))
    assert completion.finish_reason == "length"
    assert completion.text == ""
    assert completion.reasoning
    assert THOUGHT.startswith(completion.reasoning)


@pytest.mark.parametrize("template", [TEMPLATE, OPENING_TEMPLATE])
def test_an_answer_of_a_given_form_is_no_thinking(template: str) -> None:
    pytest.importorskip("llguidance")
    config = GenerationConfig(constraint=Constraint.json_object(), max_new_tokens=100)
    completion = thinking_model('{"sea": "blue"}', template).chat(QUESTION, config)
    assert completion.reasoning == ""
    assert json.loads(completion.text) == {"sea": "blue"}


def test_a_form_may_begin_after_the_thinking() -> None:
    pytest.importorskip("llguidance")
    constraint = Constraint.choices(["red", "green"]).starting_after("</think>")
    completion = model_with_marks("<think>Which?</think>blue").chat(QUESTION, GenerationConfig(constraint=constraint))
    assert completion.reasoning == "Which?"
    assert completion.text in ("red", "green")


@pytest.mark.parametrize("make", [thinking_model, model_with_marks])
@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (f"<think>\nI look.\n</think>\n\n{CALL}", ""),
        (f"<think>\nI look.\n</think>\n\nLook:\n{CALL}", "Look:"),
        (f"<think>\nI look.\n{CALL}", ""),  # it forgets to end its thinking
    ],
)
def test_a_model_that_thinks_calls_tools(make, answer: str, text: str) -> None:
    pytest.importorskip("llguidance")
    completion = make(answer, TEMPLATE + "{#<tool_call>#}").chat(QUESTION, tools=TOOLS)
    assert (completion.reasoning, completion.text) == ("I look.", text)
    assert [(call.name, call.arguments) for call in completion.tool_calls] == [("look", "{}")]
    assert completion.finish_reason == "tool_calls"
    assert completion.message["reasoning_content"] == "I look."  # templates keep it until the answer that follows


HEADERS = (
    f"{CHANNEL}commentary to=functions.look <|constrain|>json<|message|>",
    f"{CHANNEL}commentary to=functions.look<|constrain|>json<|message|>",
    f"{CHANNEL}commentary to=functions.look json<|message|>",
    f"{CHANNEL}analysis to=functions.look<|message|>",
    " to=functions.look<|channel|>commentary json<|message|>",
)
LOOKED = f"{CHANNEL}analysis<|message|>I look.<|end|>"


@pytest.mark.parametrize("make", [thinking_model, with_channels])
@pytest.mark.parametrize(
    ("before", "expected", "header"),
    [
        ("", ("", ""), HEADERS[0]),
        ("", ("", ""), HEADERS[4]),
        (f"{LOOKED}<|start|>assistant", ("I look.", ""), HEADERS[4]),
        (f"{CHANNEL}commentary<|message|>Looking.<|end|><|start|>assistant", ("", "Looking."), HEADERS[4]),
        *(
            (f"{LOOKED}{HARMONY}commentary<|message|>Looking.<|end|><|start|>assistant", ("I look.", "Looking."), each)
            for each in HEADERS
        ),
    ],
)
def test_gpt_oss_calls_tools_after_what_it_thinks_and_says(make, before: str, expected, header: str) -> None:
    pytest.importorskip("llguidance")
    model = make(f'{before}{header}{{"at": "sea"}}', CHANNELS_TEMPLATE)
    chunks = list(model.stream_chat(QUESTION, tools=LOOK_AT))
    completion = join(chunks)
    assert (completion.reasoning, completion.text) == expected
    assert [(call.name, call.arguments) for call in completion.tool_calls] == [("look", '{"at": "sea"}')]
    assert completion.finish_reason == "tool_calls"
    assert sum(bool(chunk.tool_calls) for chunk in chunks) > 1


@pytest.mark.parametrize("make", [thinking_model, with_channels])
@pytest.mark.parametrize(("choice", "begun"), [("auto", f"{CHANNEL}commentary to=functions."), ("required", "")])
def test_the_arguments_that_gpt_oss_writes_fit_the_tool(make, choice: str, begun: str) -> None:
    pytest.importorskip("llguidance")
    model = make(f"{begun}xx", CHANNELS_TEMPLATE)
    config = GenerationConfig(max_new_tokens=300, temperature=1.0, seed=0)
    (call,) = model.chat(QUESTION, config, tools=LOOK_AT, tool_choice=choice).tool_calls
    assert call.name == "look"
    assert json.loads(call.arguments)["at"] in ("sea", "sky")


def test_each_control_token_of_a_call_is_known_also_that_of_what_may_stand_in_it() -> None:
    model = with_channels("x", CHANNELS_TEMPLATE)
    marks = ("<|channel|>", "<|constrain|>", "<|message|>")
    assert tool_format(model.chat_template, model.tokenizer).control_ids == {
        mark: model.tokenizer.control_tokens[mark] for mark in marks
    }


def test_gpt_oss_reads_again_what_it_thought_and_said_before_a_call() -> None:
    model = thinking_model("x", CHANNELS_TEMPLATE)
    turn = {"role": "assistant", "content": "Looking.", "reasoning_content": "I look.", "tool_calls": [LOOK_CALL]}
    text = model.tokenizer.decode(model.encode_chat([*QUESTION, turn], LOOK_AT), skip_control_tokens=False)
    assert f"{HARMONY}analysis<|message|>I look.\n\nLooking.<|end|><|start|>assistant to=functions.look" in text


def test_a_call_that_must_come_comes_though_the_prompt_begins_the_thinking() -> None:
    pytest.importorskip("llguidance")
    model = thinking_model(CALL, OPENING_TEMPLATE + "{#<tool_call>#}")
    completion = model.chat(QUESTION, tools=TOOLS, tool_choice="required")
    assert (completion.reasoning, completion.text) == ("", "")
    assert [call.name for call in completion.tool_calls] == ["look"]


def test_a_conversation_keeps_the_answer_alone_and_computes_again_what_the_template_changes() -> None:
    model = model_with_marks()
    session = ChatSession(model)
    assert join(session.send("What is the sea?")).reasoning == THOUGHT
    assert session.messages[-1] == {"role": "assistant", "content": SAID}
    first = model.encode_chat(session.messages[:1])
    second = join(session.send("And the sky?"))
    assert second.usage.cached_tokens >= len(first)


@pytest.mark.parametrize("speculation", [None, "prompt_lookup"])
def test_a_turn_that_ends_while_it_thinks_has_no_answer_to_keep(
    monkeypatch: pytest.MonkeyPatch, speculation: Literal["prompt_lookup"] | None
) -> None:
    ignored: list[object] = []  # what a generator raises when it is freed
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    session = ChatSession(model_with_marks())
    chunks = session.send("What is the sea?", GenerationConfig(speculation=speculation))
    while not next(chunks).reasoning:
        pass
    chunks.close()
    assert session.messages == []
    assert session.context_used == 0
    assert ignored == []

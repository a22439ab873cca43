"""Texts that outgrow the context, against a fresh run on what is left of them at every token."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from held_engine import held
from scripted_chat import converse
from waiting import wait_for

import edgelm
from edgelm import ChatSession, Engine, EngineOptions, GenerationConfig, LanguageModel
from edgelm.batching import running_batch
from edgelm.completion import Message
from edgelm.config import ModelConfig
from edgelm.decoding.answer import join
from edgelm.decoding.context_shift import fitted
from edgelm.decoding.draft_length import StepCosts
from edgelm.errors import ConfigError, ContextLengthError, OutOfMemoryError
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.session import DecoderSession
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer

CONTEXT = 96
TEXT = np.random.default_rng(3).integers(5, 320, 1500).tolist()
ANSWER = GenerationConfig(max_new_tokens=150, ignore_eos=True, context_shift=4)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The tiny model, as one that was made for a shorter context."""
    model = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))
    short = ModelConfig.from_dict(model.config.to_dict() | {"max_position_embeddings": CONTEXT})
    assert isinstance(model.session, DecoderSession)
    model.session.config = short
    model.prefixes = PrefixCache(short, 0)
    return model


def greedy_on_what_is_left(model: LanguageModel, text: list[int], keep: int, count: int) -> list[int]:
    """Compute every token on its own, from the text that is left before it."""
    text = list(text)
    for _ in range(count):
        visible = text
        while len(visible) > CONTEXT:
            visible = [*visible[:keep], *visible[keep + (CONTEXT - keep) // 2 :]]
        logits_V = model.session.forward(visible, model.session.new_cache())[0]
        text.append(int(logits_V.argmax()))
    return text[-count:]


@pytest.mark.parametrize(("length", "keep"), [(3, 0), (90, 4), (96, 4), (97, 7), (400, 40)])
def test_each_token_is_the_one_that_follows_what_is_left(model: LanguageModel, length: int, keep: int) -> None:
    answer = model.generate(TEXT[:length], ANSWER.replace(context_shift=keep, max_new_tokens=110))
    assert list(answer.token_ids) == greedy_on_what_is_left(model, TEXT[:length], keep, 110)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens <= CONTEXT


def test_what_is_left_depends_on_the_length_alone() -> None:
    for keep in (0, 4, 48):
        grown: list[int] = []
        for i, id_ in enumerate(TEXT[:500]):
            grown = list(fitted([*grown, id_], keep, CONTEXT))
            assert grown == list(fitted(TEXT[: i + 1], keep, CONTEXT))
            assert len(grown) <= CONTEXT
            assert grown[:keep] == TEXT[: min(i + 1, keep)]


def test_the_token_that_every_text_begins_with_stays(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "leading_ids", (TEXT[0],))
    for context_shift, kept in ((0, 1), (3, 3)):
        left = model.answer(TEXT[:200], ANSWER.replace(context_shift=context_shift)).prompt_ids
        assert left[:kept] == TEXT[:kept]
        assert left[kept] != TEXT[kept]


def test_without_a_limit_an_answer_is_as_long_as_the_context(model: LanguageModel) -> None:
    answer = model.generate(TEXT[:50], GenerationConfig(ignore_eos=True, context_shift=0))
    assert (answer.usage.completion_tokens, answer.finish_reason) == (CONTEXT, "length")
    ends = model.generate(TEXT[:50], GenerationConfig(ignore_eos=True))
    assert ends.usage.completion_tokens == CONTEXT - 50 + 1


@pytest.mark.parametrize("room", [10_000, 230])
def test_an_engine_shifts_in_any_company_as_alone(model: LanguageModel, room: int) -> None:
    prompts = [TEXT[:length] for length in (3, 60, 95, 96, 97, 300)]
    settings = [ANSWER.replace(temperature=0.8 * (i % 2), seed=i, context_shift=i) for i in range(len(prompts))]
    alone = [model.generate(prompt, own) for prompt, own in zip(prompts, settings, strict=True)]
    options = EngineOptions(max_batch=4, max_kv_bytes=room * model.config.kv_bytes_per_token)
    with Engine(model, options) as engine:
        with held(engine):
            answers = [engine.submit(prompt, own) for prompt, own in zip(prompts, settings, strict=True)]
        together = [join(answer) for answer in answers]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert (engine.stats.preempted > 0) == (room == 230)


class CheapGuesses(StepCosts):
    """Let further tokens cost little, whatever the machine is doing."""

    is_known = True

    def seconds(self, tokens: int) -> float:
        return 1.0 + 0.05 * tokens


def test_guessed_tokens_shift_as_plain_ones(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "step_costs", CheapGuesses())
    prompt, config = TEXT[:10] * 8, ANSWER.replace(speculation="prompt_lookup", repetition_penalty=0.7)
    plain = model.generate(prompt, config.replace(speculation=None))
    with Engine(model) as engine:
        answers = [model.generate(prompt, config), join(engine.submit(prompt, config))]
    for answer in answers:
        assert answer.token_ids == plain.token_ids
        assert answer.timings.accepted_tokens > 20


def test_a_beginning_is_kept_also_where_its_answer_shifts(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config, answers=False))
    answers = [model.generate(TEXT[:90], ANSWER) for _ in range(2)]
    assert answers[0].token_ids == answers[1].token_ids
    assert [answer.usage.cached_tokens for answer in answers] == [0, 64]


def test_of_what_is_left_the_prompt_alone_is_kept_as_one(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config, answers=False))
    model.generate(TEXT[:90], ANSWER.replace(max_new_tokens=40))
    # Two blocks of the 90, and one of the 51 that are left when the text has 97: the answer is no part of them.
    assert model.prefixes.tokens == 64 + 32


def test_a_cancelled_answer_shifts_no_more(model: LanguageModel) -> None:
    cancel, cache = threading.Event(), model.session.new_cache()
    seen = 0
    for chunk in model.stream(TEXT[:90], ANSWER, cancel=cancel, cache=cache):
        seen += len(chunk.token_ids)
        if seen >= 7:
            cancel.set()
    assert chunk.finish_reason == "cancelled"
    assert cache.token_ids[:90] == TEXT[:90]


def test_what_is_kept_leaves_half_of_the_context(model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"first 49 tokens are to stay .* the context of 96; 48 can.*lower that"):
        model.answer(TEXT[:3], ANSWER.replace(context_shift=49))


def test_a_conversation_keeps_its_system_message_and_is_computed_anew_only_where_it_shifts(
    model: LanguageModel,
) -> None:
    session, config = ChatSession(model, system="Be brief."), ANSWER.replace(max_new_tokens=4)
    lengths = []
    for i in range(30):
        *_, last = session.send(f"Line {i}", config)
        lengths.append(session.context_used)
        assert last.usage is not None
        begun = session._cache.token_ids
        assert model.tokenizer.decode(begun[:25], skip_control_tokens=False).startswith("<|im_start|>system\nBe brief.")
        assert len(begun) <= CONTEXT
        if i and lengths[-1] > lengths[-2]:
            assert last.usage.cached_tokens >= lengths[-2] - 8  # the answer's text may be other tokens
    assert sum(now < before for before, now in pairwise(lengths)) >= 3
    with pytest.raises(ContextLengthError, match="this model's maximum context length is 96"):
        list(session.send("more", config.replace(context_shift=None)))


def test_a_conversation_keeps_more_than_its_system_message_where_that_is_asked_for(model: LanguageModel) -> None:
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="Hello")]
    opening, more = (model.chat_prompt(turns, ANSWER.replace(context_shift=keep))[1].context_shift for keep in (0, 48))
    assert opening is not None
    assert 0 < opening < 48
    assert more == 48


def test_an_engine_shifts_a_text_of_longrope_where_its_row_is_full(longrope_package: Path) -> None:
    model = edgelm.load(longrope_package, edgelm.SessionOptions(threads=1))  # its rows have 64 tokens
    with Engine(model) as engine:
        long, short = (engine.submit(ids, ANSWER) for ids in (TEXT[:100], fitted(TEXT[:100], 4, 64)))
        answer, expected = join(long), join(short)
        assert answer.token_ids == expected.token_ids
        assert (len(answer.token_ids), answer.usage.prompt_tokens) == (150, expected.usage.prompt_tokens)
        full = join(engine.submit(TEXT[:50], ANSWER.replace(context_shift=40)))
        assert (full.finish_reason, len(full.token_ids)) == ("length", 15)
        with pytest.raises(ConfigError, match=r"The first 40 tokens are to stay .* context of 64; 32 can"):
            engine.submit(TEXT[:100], ANSWER.replace(context_shift=40))


def test_an_answer_ends_where_memory_fails_while_its_text_is_shifted(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("no memory for the text")

    monkeypatch.setattr(running_batch, "fitted", no_memory)
    with Engine(model) as engine:
        answer = engine.submit(TEXT[:90], ANSWER)
        wait_for(lambda: answer.has_ended)
        with pytest.raises(OutOfMemoryError, match="no memory for the text"):
            join(answer)


def test_a_long_system_message_is_read_while_the_conversation_fits(model: LanguageModel) -> None:
    turns = [Message(role="system", content="word " * 20), Message(role="user", content="Hello")]
    answer = model.chat(turns, ANSWER)
    assert answer.finish_reason == "length"
    assert answer.token_ids == model.chat(turns, ANSWER.replace(context_shift=None)).token_ids
    with pytest.raises(ConfigError, match="Of a conversation these are its system message and tools: shorten them"):
        model.chat([*turns, Message(role="user", content="word " * 20)], ANSWER)


def test_a_chat_says_which_part_of_it_the_model_reads() -> None:
    chat = converse("word " * 600, "Hello", context_shift=0)
    assert len(chat.screen.answers) == 2
    assert not chat.screen.warnings
    assert chat.screen.notes[-1].startswith("The model reads the newest part of this conversation's ")
    assert chat.session.context_used <= 1024 < chat.conversation_tokens()

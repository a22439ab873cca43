"""Answers in which no n-gram comes twice, or that may not end early, against transformers' processors."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from held_engine import held
from make_tiny_model import make_checkpoint
from speculating import eager, repetitive
from transformers.generation import logits_process as oracle

import edgelm
from edgelm import ChatSession, Constraint, Engine, GenerationConfig, LanguageModel
from edgelm.completion import Completion
from edgelm.config import ModelConfig
from edgelm.decoding.answer import join
from edgelm.decoding.ngrams import NGrams
from edgelm.decoding.sampling import Sampler
from edgelm.generation_config import GenerationConfig as Config
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.testing import scripted_model, tiny_model_path
from edgelm.text.stop import StopMatcher

PROMPT = np.random.default_rng(7).integers(3, 320, 150).tolist()
END_IDS = (2, *range(40, 250))  # so much of the vocabulary that answers end early
SETTINGS: tuple[dict[str, Any], ...] = (
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 2, "no_repeat_ngram_size": 3},
    {"min_new_tokens": 5},
    {"min_new_tokens": 12},  # all that there is room for
    {"no_repeat_ngram_size": 2, "min_new_tokens": 8, "repetition_penalty": 1.2},
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model's weights in transformers."""
    folder: Path = make_checkpoint(tmp_path_factory.mktemp("source") / "tiny")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ngrams_of(size: int, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(token_ids[place : place + size]) for place in range(len(token_ids) - size + 1)]


def repeats(size: int, prompt: Sequence[int], answer: Sequence[int]) -> bool:
    """Tell whether one of the n-grams that end in the answer was there before."""
    every = ngrams_of(size, [*prompt, *answer])
    return any(ngram in every[:place] for place, ngram in enumerate(every) if place + size > len(prompt))


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_tokens_that_repeat_an_ngram_are_those_of_transformers(size: int) -> None:
    process = oracle.NoRepeatNGramLogitsProcessor(size)
    for seed in range(0, 20, 3):
        text = np.random.default_rng(seed).integers(0, 6, 60).tolist()
        ngrams = NGrams(size, text[: 2 * seed])
        for place in range(2 * seed, len(text)):
            banned = process(torch.tensor([text[:place]]), torch.zeros(1, 6))[0] == -torch.inf
            assert ngrams.repeating() == set(torch.nonzero(banned).flatten().tolist()), (text[:place], size)
            ngrams.add(text[place])


def test_a_copy_of_ngrams_goes_on_by_itself() -> None:
    ngrams = NGrams(2, [1, 2, 1])
    other = ngrams.copy()
    for id_ in (3, 1):
        other.add(id_)
    assert (ngrams.repeating(), other.repeating()) == ({2}, {2, 3})


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_answers_are_those_of_transformers(
    settings: dict[str, Any], num_beams: int, model: LanguageModel, llama: Any
) -> None:
    end_ids = END_IDS if "min_new_tokens" in settings else (2,)
    config = GenerationConfig(max_new_tokens=12, num_beams=num_beams, stop_token_ids=end_ids)
    changed = 0
    for length in (5, 50):
        prompt = PROMPT[:length]
        expected = llama.generate(
            torch.tensor([prompt]), do_sample=False, pad_token_id=0, max_new_tokens=12, num_beams=num_beams,
            eos_token_id=list(end_ids), **settings,
        )[0, length:].tolist()  # fmt: skip
        got = model.generate(prompt, config.replace(**settings)).token_ids
        assert list(got) == expected
        changed += got != model.generate(prompt, config).token_ids
    assert changed


@pytest.mark.parametrize("settings", SETTINGS)
def test_streams_and_rows_of_an_engine_each_have_their_own(settings: dict[str, Any], model: LanguageModel) -> None:
    plain = GenerationConfig(max_new_tokens=20, stop_token_ids=END_IDS)
    configs = [plain, plain.replace(**settings), plain.replace(**settings, temperature=1.0, seed=3)]
    configs += [plain.replace(**settings, num_beams=3), plain]
    prompts = [PROMPT[:length] for length in (20, 20, 31, 20, 44)]
    alone = [model.generate(prompt, own) for prompt, own in zip(prompts, configs, strict=True)]
    with Engine(model) as engine:
        with held(engine):
            answers = [engine.submit(prompt, own) for prompt, own in zip(prompts, configs, strict=True)]
        assert [join(answer).token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert join(model.stream(prompts[1], configs[1])).token_ids == alone[1].token_ids


@pytest.mark.parametrize("exact", [False, True])
def test_guessed_tokens_are_those_of_the_plain_loop(exact: bool) -> None:
    guessing = eager(edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)))
    draw, right = random.Random(5), 0
    for settings in SETTINGS[1:]:
        prompt = repetitive(draw, 60)
        config = GenerationConfig(max_new_tokens=60, stop_token_ids=END_IDS[:40], **settings)
        plain = guessing.generate(prompt, config)
        guessed = guessing.generate(prompt, config.replace(speculation="prompt_lookup", exact_speculation=exact))
        assert guessed.token_ids == plain.token_ids
        right += guessed.timings.accepted_tokens
        if size := config.no_repeat_ngram_size:
            assert not repeats(size, prompt, plain.token_ids)
    assert right


def test_no_ngram_comes_again_after_a_shift_of_the_context() -> None:
    model = edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1))
    model.session.config = ModelConfig.from_dict(model.config.to_dict() | {"max_position_embeddings": 64})
    model.prefixes = PrefixCache(model.session.config, 0)
    config = GenerationConfig(max_new_tokens=150, context_shift=4, ignore_eos=True)
    for size, comes_again in ((0, True), (2, False)):
        answer = model.generate(PROMPT[:40], config.replace(no_repeat_ngram_size=size))
        assert repeats(2, PROMPT[:40], answer.token_ids) == comes_again


def test_a_turn_of_a_saved_session_counts_the_conversation(tmp_path: Path) -> None:
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True, no_repeat_ngram_size=2)
    chats = [ChatSession(edgelm.load(tiny_model_path(), edgelm.SessionOptions(threads=1)))]
    list(chats[0].send("Hello", config))
    chats[0].save(tmp_path / "chat")
    chats.append(ChatSession.load(chats[0].model, tmp_path / "chat"))
    prompt = chats[0].model.encode_chat([*chats[0].messages, {"role": "user", "content": "And?"}])
    answers = [[id_ for chunk in chat.send("And?", config) for id_ in chunk.token_ids] for chat in chats]
    assert answers[0] == answers[1]
    assert not repeats(2, prompt, answers[0])


def said(answer: str, **settings: Any) -> Completion:
    return scripted_model(answer).generate("x", GenerationConfig(**settings))


def test_no_stop_ends_an_answer_that_is_too_short() -> None:
    """One that is complete later does, wherever it begins; as in vLLM the one before stays text."""
    text = "One, two, three, four."
    count = len(said("One, two").token_ids) - 1  # and an end token
    for num_beams in (1, 3):
        assert said(text, stop=",", num_beams=num_beams).text == "One"
        later = said(text, stop=",", min_new_tokens=count, num_beams=num_beams)
        assert (later.text, later.finish_reason, later.stop) == ("One, two", "stop", ",")
        across = said(text, stop=("o, three", "One"), min_new_tokens=count, num_beams=num_beams)
        assert (across.text, across.stop) == ("One, tw", "o, three")
        limited = said(text, stop=",", min_new_tokens=99, max_new_tokens=count, num_beams=num_beams)
        assert (limited.text, limited.finish_reason) == ("One, two", "length")


def test_a_stop_that_stayed_text_counts_no_more_though_a_longer_one_was_held_back_for() -> None:
    stops = StopMatcher(("a", "abc"))
    assert stops.push("xa", may_stop=False) == ("x", False)
    assert stops.push("b") == ("", False)
    assert stops.push("dda") == ("abdd", True)


def test_an_end_token_comes_behind_the_least_tokens() -> None:
    short = said("Fine.")
    long = said("Fine.", min_new_tokens=len(short.token_ids) + 6)
    assert len(long.token_ids) >= len(short.token_ids) + 6
    assert said("Fine.", min_new_tokens=len(short.token_ids) - 1).token_ids == short.token_ids


@pytest.mark.parametrize("settings", [{"min_new_tokens": 60}, {"no_repeat_ngram_size": 1}])
def test_a_constraint_has_the_last_word(settings: dict[str, Any], model: LanguageModel) -> None:
    """One that is over ends the answer, and what it leaves no choice about comes again."""
    for pattern in ("hello", "(ab){4}", "[a-f]", "(a|b)b{7}"):
        config = GenerationConfig(constraint=Constraint.regex(pattern), stop_token_ids=(5,), **settings)
        plain = model.generate("x", config.replace(no_repeat_ngram_size=0, min_new_tokens=0))
        answer = model.generate("x", config)
        assert answer.finish_reason == "stop"
        assert len(answer.text) == len(plain.text)


def test_a_constraint_that_may_go_on_does_until_there_are_enough() -> None:
    config = GenerationConfig(constraint=Constraint.regex("Fine[.]*"), max_new_tokens=40)
    model = scripted_model("Fine")
    assert model.generate("x", config).text == "Fine"
    longer = model.generate("x", config.replace(min_new_tokens=20))
    assert (longer.finish_reason, longer.text.strip(".")) == ("stop", "Fine")
    assert len(longer.token_ids) > 20


def test_a_healed_word_counts_with_the_prompt_that_is_left() -> None:
    model = scripted_model(" the sea the sea the sea")
    config = GenerationConfig(token_healing=True, max_new_tokens=12)
    assert model.generate("the sea t", config).text.startswith("he sea the sea")
    answer = model.answer("the sea t", config.replace(no_repeat_ngram_size=2))
    got = model.generate("the sea t", config.replace(no_repeat_ngram_size=2))
    assert got.text.startswith("h")
    assert not repeats(2, answer.prompt_ids, got.token_ids)


def test_what_bans_all_tokens_bans_none() -> None:
    sampler = Sampler(GenerationConfig(no_repeat_ngram_size=1), [0, 1, 2])
    assert sampler.sample(np.array([0.0, 2.0, 1.0], np.float32)) == 1


def test_end_tokens_beyond_the_logits_are_passed_over() -> None:
    sampler = Sampler(GenerationConfig(min_new_tokens=1), end_ids=(1, 700))
    row = np.array([0.0, 2.0, 1.0], np.float32)
    assert [sampler.sample(row) for _ in range(2)] == [2, 1]


def test_settings_with_them_are_plain_values() -> None:
    config = Config(no_repeat_ngram_size=3, min_new_tokens=56)
    assert pickle.loads(pickle.dumps(config)) == config == eval(repr(config))
    assert config.replace(no_repeat_ngram_size=0, min_new_tokens=0) == Config()

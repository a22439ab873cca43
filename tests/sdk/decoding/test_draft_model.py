"""Draft models: which may draft for which, what they read and when, and where they stop."""

import dataclasses
import itertools
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_configs import CONFIG, PAIR
from speculating import eager, load, repetitive

import edgelm
from edgelm import GenerationConfig, LanguageModel
from edgelm.decoding.draft_model import DraftModel
from edgelm.errors import ConfigError
from edgelm.memory.kv_cache import KVCache
from edgelm.runtime.session_options import SessionOptions
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path
from edgelm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load(tiny_model_path())


def test_a_draft_with_another_tokenizer_is_refused_by_name(model: LanguageModel, byte_level_folder: Path) -> None:
    draft = scripted_model("blue")
    draft.tokenizer = Tokenizer.load(byte_level_folder)
    with pytest.raises(ConfigError, match=r"cannot draft for .*: their tokenizers differ in token \d+, which is"):
        model.generate("The sea", GenerationConfig(speculation=draft))


def test_a_draft_with_other_control_tokens_is_refused_too(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = scripted_model("blue")
    monkeypatch.setattr(draft.tokenizer, "control_token_ids", frozenset())
    with pytest.raises(ConfigError, match="differ in which tokens are control tokens"):
        model.generate("The sea", GenerationConfig(speculation=draft))


def test_a_draft_with_an_encoder_is_refused(model: LanguageModel) -> None:
    draft = scripted_model("blue")
    draft.session.config = dataclasses.replace(CONFIG, **PAIR)
    with pytest.raises(ConfigError, match=r"cannot draft for tiny-random: it has an encoder"):
        model.generate("The sea", GenerationConfig(speculation=draft))


def test_a_draft_computes_the_beginning_of_a_conversation_once(model: LanguageModel) -> None:
    draft = edgelm.load(tiny_model_path(), SessionOptions(threads=1))
    prompt = repetitive(random.Random(2), 100)
    config = GenerationConfig(max_new_tokens=20, ignore_eos=True, speculation=draft)
    first = model.generate(prompt, config)
    assert draft.prefixes.reused_tokens == 0
    assert model.generate([*prompt, *first.token_ids, 7], config).timings.drafted_tokens > 0
    assert draft.prefixes.reused_tokens == 96  # of 101 tokens, in blocks of 32


def test_a_draft_stops_where_its_own_context_ends(model: LanguageModel) -> None:
    draft = DraftModel(load(tiny_model_path()), model)
    draft.extend(repetitive(random.Random(1), model.context_length - 20))
    assert draft.look() is not None
    guessed = read_and_guess(draft)
    assert len(guessed) == 15
    assert draft.guess(15) == guessed  # of the same text
    draft.extend([5] * 10)
    assert draft.look() is None


def read_and_guess(draft: DraftModel) -> list[int]:
    """Return the guess that comes when the draft has read the text, a piece with each call."""
    return next(guess for _ in range(100) if (guess := draft.guess(15)))


def guesses_behind(prompt: Sequence[int], draft: DraftModel) -> list[int]:
    draft.extend(prompt)
    return draft.guess(15)


def test_a_draft_reads_a_long_text_a_piece_with_each_guess(model: LanguageModel) -> None:
    small = eager(scripted_model("blue"))
    assert isinstance(small.session, ScriptedDecoder)
    draft, computed = DraftModel(small, model), small.session.forwarded
    prompt = repetitive(random.Random(1), 300)
    draft.extend(prompt)
    for number in range(1, 3):
        assert draft.guess(4) == []
        assert len(computed) == number
        draft.extend([7])  # the answer goes on meanwhile
    assert len(draft.guess(4)) in (0, 4)
    assert read_and_guess(draft)
    read = list(itertools.chain.from_iterable(computed))
    assert read[: len(prompt) + 2] == [*prompt, 7, 7]
    assert max(map(len, computed)) == 128
    draft.extend([5] * 200)  # as beside others in an engine, where nothing is guessed
    assert draft.guess(4) == []


def test_an_answer_is_cancelled_while_its_draft_reads_the_prompt(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, cancel = load(tiny_model_path()), threading.Event()
    computes, pieces = draft.session.forward, list[int]()

    def forward(token_ids: Sequence[int], cache: KVCache, **settings: bool) -> np.ndarray:
        pieces.append(len(token_ids))
        cancel.set()
        return computes(token_ids, cache, **settings)

    monkeypatch.setattr(draft.session, "forward", forward)
    config = GenerationConfig(ignore_eos=True, speculation=draft)
    chunks = list(model.stream(repetitive(random.Random(5), 600), config, cancel=cancel))
    assert chunks[-1].finish_reason == "cancelled"
    assert pieces == [128]


def test_a_draft_guesses_no_token_that_the_model_has_not(model: LanguageModel) -> None:
    small, prompt = scripted_model("blue"), [5, 6, 7]
    assert max(guesses_behind(prompt, DraftModel(model, model))) >= 40
    small.session.config = dataclasses.replace(small.config, vocab_size=40)
    assert max(guesses_behind(prompt, DraftModel(model, small))) < 40
    draft = DraftModel(small, model)
    draft.extend([5, 39])
    assert draft.look() is not None
    draft.extend([40])  # which the draft does not know
    assert draft.look() is None

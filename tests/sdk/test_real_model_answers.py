"""Trained weights, in whose wide rows ties are near: neither guesses nor company nor reuse change an answer."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from speculating import load

import edgelm
from edgelm import Completion, Engine, EngineOptions, GenerationConfig, LanguageModel
from edgelm.decoding.generate import prefill
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache

pytestmark = pytest.mark.real_model

IDS = np.random.default_rng(0).integers(5, 49152, 140).tolist()  # more than are computed at once
PLAIN = GenerationConfig(max_new_tokens=8, ignore_eos=True, temperature=1.0, seed=1, logprobs=2)


@dataclass
class Case:
    """A request, and what answers it alone, with the cache that is left."""

    prompt: list[int]
    config: GenerationConfig
    alone: Completion
    cache: KVCache

    @property
    def guessing(self) -> GenerationConfig:
        return self.config.replace(speculation="prompt_lookup", exact_speculation=True)


@pytest.fixture(scope="module")
def model(smollm2_package: Path) -> LanguageModel:
    return load(smollm2_package, threads=2)


def asked(model: LanguageModel, text: str) -> list[int]:
    return model.encode_chat([{"role": "user", "content": text}])


@pytest.fixture(scope="module")
def cases(model: LanguageModel) -> list[Case]:
    """Two that repeat themselves, so that guesses come true, and two that do not."""
    config = GenerationConfig(max_new_tokens=12, seed=1)
    requests = [
        (asked(model, "Repeat this: the sea, the sea and the old sea"), config),
        (asked(model, "Say: a dog and a dog and a cat"), config.replace(temperature=0.7)),
        (IDS[:60], PLAIN.replace(top_p=0.9, repetition_penalty=1.2)),
        (IDS[-1:], PLAIN),
    ]
    made = []
    for prompt, own in requests:
        cache = model.new_cache()
        made.append(Case(prompt, own, edgelm.join(model.stream(prompt, own, cache=cache)), cache))
    return made


def check_same(got: Completion, alone: Completion) -> None:
    assert (got.token_ids, got.text, got.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
    assert got.logprobs == alone.logprobs


def test_exact_guesses_leave_the_answers_and_caches_of_the_plain_loop(model: LanguageModel, cases: list[Case]) -> None:
    right = 0
    for case in cases[:2]:
        cache = model.new_cache()
        got = edgelm.join(model.stream(case.prompt, case.guessing, cache=cache))
        check_same(got, case.alone)
        assert cache.token_ids == case.cache.token_ids
        for one, other in zip(cache.buffers, case.cache.buffers, strict=True):
            np.testing.assert_array_equal(one[:, :, : cache.length], other[:, :, : cache.length])
        right += got.timings.accepted_tokens
    assert right > 3


def test_requests_in_company_that_guess_or_not_are_answered_as_alone(model: LanguageModel, cases: list[Case]) -> None:
    with Engine(model, EngineOptions(max_batch=4)) as engine:
        generations = [engine.submit(case.prompt, case.guessing) for case in cases[:2]]
        generations += [engine.submit(case.prompt, case.config) for case in cases[2:]]
        answers = [edgelm.join(generation) for generation in generations]
    for answer, case in zip(answers, cases, strict=True):
        check_same(answer, case.alone)
    assert not hasattr(os, "memfd_create") or sum(answer.timings.accepted_tokens for answer in answers) > 3


def test_answers_with_guesses_that_need_not_be_exact_are_as_likely_as_those_of_the_plain_loop(
    model: LanguageModel,
) -> None:
    prompt, config = asked(model, "Write about the sea. Say the sea often."), GenerationConfig(max_new_tokens=24)
    plain = model.generate(prompt, config.replace(logprobs=0))
    guessed = model.generate(prompt, config.replace(speculation="prompt_lookup"))
    scored = model.score([*prompt, *guessed.token_ids]).tokens[-len(guessed.token_ids) :]
    means = [np.mean([token.logprob for token in tokens]) for tokens in (plain.logprobs, scored)]
    assert abs(means[0] - means[1]) < 0.1


def test_a_prompt_goes_on_from_a_reused_beginning_to_the_bit(model: LanguageModel) -> None:
    computed = model.session.new_cache()
    expected_V = prefill(model.session, IDS, computed).copy()
    prefixes = PrefixCache(model.config)
    prefixes.keep(computed, len(IDS))
    for shared in (96, 128):
        cache = model.session.new_cache()
        prefixes.fill(cache, IDS)
        cache.truncate(shared)
        np.testing.assert_array_equal(prefill(model.session, IDS, cache), expected_V)

"""Answers with guessed tokens, against the plain loop: the same tokens in exact mode, the same distribution always."""

import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from forked_processes import exit_status, fork
from make_tiny_model import make_checkpoint
from speculating import FixedCosts, configs, eager, load, repetitive
from unchecked_export import export_unchecked

import edgelm
from edgelm import Constraint, GenerationConfig, LanguageModel
from edgelm.decoding.generate import prefill
from edgelm.decoding.sampling import Sampler
from edgelm.decoding.speculation import Speculator, speculate
from edgelm.errors import ConfigError, ProviderError
from edgelm.generation_config import GenerationConfig as Config
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load(tiny_model_path())


class Guesses:
    """Guess the same tokens at every place."""

    costs_nothing = True
    kinds: Mapping[int, float] = {1: 0.99}

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Need no text."""

    def look(self) -> int:
        return 1

    def guess(self, count: int) -> list[int]:
        return self._ids[:count]


def check_exact(model: LanguageModel, prompt: Sequence[int], config: GenerationConfig, speculation: object) -> int:
    """Compare an answer and the cache that it leaves with the plain loop's; return how many guesses were right."""
    plain_cache, cache = model.session.new_cache(), model.session.new_cache()
    plain = edgelm.decoding.answer.join(model.stream(prompt, config, cache=plain_cache))
    exact = config.replace(speculation=speculation, exact_speculation=True)
    got = edgelm.decoding.answer.join(model.stream(prompt, exact, cache=cache))
    assert (got.token_ids, got.text, got.finish_reason) == (plain.token_ids, plain.text, plain.finish_reason)
    assert got.logprobs == plain.logprobs
    assert got.usage == plain.usage
    assert got.timings.accepted_tokens <= got.timings.drafted_tokens
    assert cache.token_ids == plain_cache.token_ids
    for one, other in zip(cache.buffers, plain_cache.buffers, strict=True):
        np.testing.assert_array_equal(one[:, :, : cache.length], other[:, :, : cache.length])
    return got.timings.accepted_tokens


def test_exact_answers_are_those_of_the_plain_loop_to_the_bit(model: LanguageModel) -> None:
    right = [check_exact(model, prompt, config, "prompt_lookup") for prompt, config in configs(16, seed=1)]
    assert sum(right) > 40


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_exact_answers_are_those_of_the_plain_loop_in_every_precision(precision: str, tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_unchecked(checkpoint, tmp_path / "package", precision)
    model = load(tmp_path / "package")
    for prompt, config in configs(8, seed=2):
        check_exact(model, prompt, config, "prompt_lookup")


def test_a_context_is_filled_to_its_end_and_no_further(model: LanguageModel) -> None:
    prompt = repetitive(random.Random(0), model.context_length - 30)
    config = GenerationConfig(ignore_eos=True)
    check_exact(model, prompt, config, "prompt_lookup")
    assert model.generate(prompt, config.replace(speculation="prompt_lookup")).usage.total_tokens == 1025


def test_constrained_answers_are_those_of_the_plain_loop(model: LanguageModel) -> None:
    pytest.importorskip("llguidance")
    constraints = [
        Constraint.json_schema({"type": "object", "properties": {"name": {"enum": ["anna", "bert"]}}}),
        Constraint.regex("(the sea is blue ){3}[0-9]{2,9}"),
        Constraint.choices(["yes, certainly", "no, never"]),
    ]
    prompt = model.tokenizer.encode('the sea is blue the sea is blue {"name": "anna"} yes, certainly 1234')
    for constraint, temperature in itertools.product(constraints, (0.0, 1.0)):
        config = GenerationConfig(constraint=constraint, temperature=temperature, seed=3, max_new_tokens=60)
        check_exact(model, prompt, config, "prompt_lookup")
        got = model.generate(prompt, config.replace(speculation="prompt_lookup"))
        assert got.text == model.generate(prompt, config).text  # the form leaves the tiny model no near ties


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("guess_rank", [0, 1])
def test_drawn_tokens_have_the_distribution_of_the_model(model: LanguageModel, exact: bool, guess_rank: int) -> None:
    kept, temperature, draws = 3, 1.5, 250
    config = Config(temperature=temperature, top_k=kept)
    prompt = model.tokenizer.encode("the sea was grey")
    session, cache = model.session, model.session.new_cache()

    def best_of(logits_V: np.ndarray) -> dict[int, float]:
        ids = np.argsort(logits_V)[::-1][:kept]
        weights = np.exp((logits_V[ids] - logits_V[ids[0]]) / temperature, dtype=np.float64)
        return dict(zip(ids.tolist(), weights / weights.sum(), strict=True))

    first_V = prefill(session, prompt, cache)
    assert first_V is not None
    first_V = first_V.copy()
    expected = {}
    for first, chance in best_of(first_V).items():
        for second, other in best_of(session.forward((first,), cache)[0]).items():
            expected[first, second] = chance * other
        cache.truncate(len(prompt))
    likeliest = max(expected, key=lambda pair: expected[pair])[0]
    guess = [second for first, second in sorted(expected, key=lambda pair: -expected[pair]) if first == likeliest]
    counts: Counter[tuple[int, int]] = Counter()
    accepted = 0
    for seed in range(draws):
        speculator = Speculator(Guesses([guess[guess_rank], 7]), FixedCosts(), exact=exact)
        sampler = Sampler(config.replace(seed=seed), prompt)
        tokens = []
        for id_, _ in speculate(session, first_V, cache, sampler, speculator):
            speculator.extend((id_,))
            tokens.append(id_)
            if len(tokens) == 2:
                break
        counts[tokens[0], tokens[1]] += 1
        accepted += speculator.accepted
        cache.truncate(len(prompt))
    assert accepted > draws / 20
    assert counts.keys() <= expected.keys()
    # 8 degrees of freedom: 26.1 is passed once in a thousand; the seeds are fixed.
    chi_squared = sum((counts[pair] - draws * chance) ** 2 / (draws * chance) for pair, chance in expected.items())
    assert chi_squared < 26.1


def test_a_draft_with_the_same_tokenizer_guesses_what_it_takes_for_likeliest(model: LanguageModel) -> None:
    draft = load(tiny_model_path())
    for prompt, config in configs(6, seed=3):
        check_exact(model, prompt, config, draft)
    config = GenerationConfig(max_new_tokens=40, ignore_eos=True, speculation=draft)
    timings = model.generate("The sea", config).timings
    assert timings.accepted_tokens > 20  # it is the same model


@pytest.mark.parametrize("value", ["lookup", 3, ["prompt_lookup"]])
def test_what_cannot_guess_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"speculation is .*; it must be 'prompt_lookup', a LanguageModel"):
        GenerationConfig(speculation=value)


def test_what_was_guessed_wrong_or_read_by_nobody_leaves_the_cache(model: LanguageModel) -> None:
    prompt = repetitive(random.Random(5), 60)
    config = GenerationConfig(max_new_tokens=40, ignore_eos=True, speculation="prompt_lookup")
    whole = model.generate(prompt, config)
    cache = model.session.new_cache()
    for chunk in model.stream(prompt, config, cache=cache):
        if chunk.text:
            break
    assert cache.token_ids == [*prompt, *whole.token_ids][: cache.length]


def test_an_answer_is_cancelled_within_a_step(model: LanguageModel) -> None:
    cancel = threading.Event()
    config = GenerationConfig(ignore_eos=True, speculation="prompt_lookup")
    chunks = []
    for chunk in model.stream(repetitive(random.Random(5), 60), config, cancel=cancel):
        chunks.append(chunk)
        cancel.set()
    assert chunks[-1].finish_reason == "cancelled"
    assert sum(len(chunk.token_ids) for chunk in chunks) < 20


def test_a_repeated_text_takes_few_steps() -> None:
    text = "the sea was grey in the morning and the boats were white over the sand"
    model = eager(scripted_model(text))
    assert isinstance(model.session, ScriptedDecoder)
    answer = model.generate(f"Repeat: {text}\n", GenerationConfig(speculation="prompt_lookup"))
    assert answer.text == text
    tokens = len(answer.token_ids)
    assert answer.timings.accepted_tokens > tokens / 2
    assert len(model.session.forwarded) < tokens / 2


def test_where_guesses_fail_they_stop() -> None:
    model = scripted_model("abcdefghijklmnopqrstuvwxyz" * 3)
    speculator = Speculator(Guesses([7, 7, 7]), FixedCosts(0.3))
    cache, sampler = KVCache(model.config), Sampler(GenerationConfig())
    logits_V = prefill(model.session, [5, 6], cache)
    assert logits_V is not None
    for _, (id_, _row) in zip(range(60), speculate(model.session, logits_V, cache, sampler, speculator), strict=False):
        speculator.extend((id_,))
    assert speculator.accepted == 0
    assert speculator.drafted < 40  # of 180


def test_a_guess_that_costs_nothing_is_made_to_see_whether_it_comes_true() -> None:
    class Unlikely(Guesses):
        kinds: Mapping[int, float] = {1: 0.3}

    speculator, guesses = Speculator(Unlikely([7]), FixedCosts(0.5)), []
    for _ in range(20):
        guesses.append(speculator.guess(1))
        speculator.extend([7])
    first = guesses.index([7])
    assert first > 1  # it had to come true before
    assert guesses[first:] == [[7]] * (20 - first)
    assert speculator.drafted == speculator.accepted == 20 - first


def test_guessed_tokens_go_beyond_the_original_context_of_longrope_as_plain_ones(longrope_package: Path) -> None:
    model, config = load(longrope_package), GenerationConfig(max_new_tokens=40, ignore_eos=True)
    right = 0
    for length in range(40, 64, 3):
        prompt = repetitive(random.Random(length), length)
        right += check_exact(model, prompt, config, "prompt_lookup")
        got = model.generate(prompt, config.replace(speculation="prompt_lookup"))
        assert got.token_ids == model.generate(prompt, config).token_ids  # float32: no near tie turns on 1e-6
    assert right > 20


def test_guesses_that_cost_something_and_fail_are_tried_again_after_longer_and_longer_pauses() -> None:
    class Costly(Guesses):
        costs_nothing = False

    speculator, steps = Speculator(Costly([7]), FixedCosts(0.3)), []
    for step in range(1500):
        if speculator.guess(1):
            steps.append(step)
        speculator.extend([8])
    pauses = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert pauses[-9:] == [8, 16, 32, 64, 128, 256, 256, 256, 256]


def test_a_draft_that_has_to_read_before_it_is_tried_again_reads_on_with_each_step() -> None:
    class Reading(Guesses):
        costs_nothing = False
        calls = 0

        def guess(self, count: int) -> list[int]:
            self.calls += 1
            return [] if self.calls % 4 else self._ids[:count]

    drafter = Reading([7])
    speculator, steps, called = Speculator(drafter, FixedCosts(0.3)), list[int](), list[int]()
    for step in range(1500):
        before = drafter.calls
        if speculator.guess(1):
            steps.append(step)
        if drafter.calls > before:
            called.append(step)
        speculator.extend([8])
    assert [later - earlier for earlier, later in itertools.pairwise(steps)][-2:] == [259, 259]
    assert called[-4:] == list(range(steps[-1] - 3, steps[-1] + 1))
    assert speculator.drafted == len(steps)


def test_the_first_exact_step_of_a_length_sets_up_and_teaches_no_cost(model: LanguageModel) -> None:
    taught: list[int] = []

    class Learning(FixedCosts):
        def add(self, tokens: int, seconds: float) -> None:
            taught.append(tokens)

    session = model.session
    for exact, wanted in ((True, [1, 3, 1]), (False, [3, 1, 3, 1, 2])):
        speculator, cache = Speculator(Guesses([7]), Learning(), exact=exact), session.new_cache()
        prefill(session, [5, 6, 7], cache)
        for count in (3, 1, 3, 1, 2):
            speculator.compute(session, [7] * count, cache)
        assert taught == wanted
        taught.clear()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="mirrored memory is Linux's")
def test_a_fork_that_drops_a_half_read_answer_takes_nothing_of_it_from_its_parent(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config))
    prompt, config = repetitive(random.Random(8), 90), GenerationConfig(max_new_tokens=50, ignore_eos=True)
    plain = model.generate(prompt, config)
    chunks = model.stream(prompt, config.replace(speculation="prompt_lookup", exact_speculation=True))
    begun = list(itertools.islice(chunks, 9))
    assert exit_status(fork(chunks.close)) == 0
    answer = edgelm.join([*begun, *chunks])
    assert answer.token_ids == plain.token_ids
    assert answer.timings.accepted_tokens > 5


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="mirrored memory is Linux's")
def test_a_fork_that_answers_with_a_cache_changes_nothing_in_that_of_its_parent(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config))
    prompt, other = repetitive(random.Random(8), 90), repetitive(random.Random(9), 90)
    config = GenerationConfig(max_new_tokens=50, ignore_eos=True)
    model.generate([prompt[0], *other], config)  # of which the fork finds a beginning that was kept
    cache = model.new_cache()
    exact = config.replace(speculation="prompt_lookup", exact_speculation=True)
    edgelm.join(model.stream(prompt, exact, cache=cache))
    before = [buffer.copy() for buffer in cache.buffers]

    def answer() -> None:
        with pytest.raises(ProviderError, match="its fork"):
            next(model.stream([prompt[0], *other], exact, cache=cache))

    assert exit_status(fork(answer)) == 0
    for buffer, was in zip(cache.buffers, before, strict=True):
        np.testing.assert_array_equal(buffer, was)

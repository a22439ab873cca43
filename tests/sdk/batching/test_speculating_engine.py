"""Guessed tokens in an engine: each request's tokens are those that it has alone, whoever is beside it."""

import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from held_engine import held
from make_tiny_model import make_checkpoint
from speculating import configs, load, repetitive
from tiny_adapter import write_tiny_adapter
from unchecked_export import export_unchecked

import edgelm
from edgelm import Completion, Constraint, Engine, EngineOptions, GenerationConfig, LanguageModel
from edgelm.errors import OutOfMemoryError, ProviderError
from edgelm.memory import kv_batch
from edgelm.memory.kv_cache import GROWTH_STEP
from edgelm.memory.mirrored_memory import MirroredBuffers
from edgelm.testing import tiny_model_path
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

needs_mirrors = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="mirrored memory is Linux's")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load(tiny_model_path())


@pytest.fixture(scope="module")
def int8_model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("packages")
    export_unchecked(HuggingFaceCheckpoint(make_checkpoint(folder / "checkpoint")), folder / "package", "int8")
    return load(folder / "package")


def together(
    model: LanguageModel, cases: Sequence[tuple[Sequence[int], GenerationConfig]], options: EngineOptions | None = None
) -> list[Completion]:
    with Engine(model, options) as engine:
        generations = [engine.submit(prompt, config) for prompt, config in cases]
        return [edgelm.join(generation) for generation in generations]


def guessing(config: GenerationConfig, *, exact: bool = True) -> GenerationConfig:
    return config.replace(speculation="prompt_lookup", exact_speculation=exact)


def check_same(got: Completion, plain: Completion) -> None:
    assert (got.token_ids, got.text, got.finish_reason) == (plain.token_ids, plain.text, plain.finish_reason)
    assert got.logprobs == plain.logprobs
    assert got.usage == plain.usage


@needs_mirrors
@pytest.mark.parametrize(("name", "seed"), [("model", 0), ("model", 1), ("int8_model", 2)])
def test_requests_in_company_guess_and_have_the_bits_that_they_have_alone(
    request: pytest.FixtureRequest, name: str, seed: int
) -> None:
    model, cases = request.getfixturevalue(name), configs(12, seed)
    plain = [model.generate(prompt, config) for prompt, config in cases]
    # Every third one guesses nothing; as some end, others come.
    asked = [(prompt, config if i % 3 == 2 else guessing(config)) for i, (prompt, config) in enumerate(cases)]
    answers = together(model, asked, EngineOptions(max_batch=4))
    for answer, alone in zip(answers, plain, strict=True):
        check_same(answer, alone)
    assert sum(answer.timings.accepted_tokens for answer in answers) > 10
    assert not any(answer.timings.drafted_tokens for answer in answers[2::3])


@needs_mirrors
def test_what_is_guessed_wrong_leaves_the_row_before_it_is_kept(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[int]] = []
    monkeypatch.setattr(model.prefixes, "keep", lambda cache, *_, **__: kept.append(list(cache.token_ids)))
    config = guessing(GenerationConfig(max_new_tokens=41, ignore_eos=True))
    prompts = [repetitive(random.Random(seed), 70) for seed in (1, 2)]
    answers = together(model, [(prompt, config) for prompt in prompts])
    assert all(0 < answer.timings.accepted_tokens < answer.timings.drafted_tokens for answer in answers)
    ends = [[*prompt, *answer.token_ids[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    assert sorted(kept[-2:]) == sorted(ends)


@needs_mirrors
def test_adapters_beams_and_constraints_are_beside_guesses(model: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    model.load_adapter(write_tiny_adapter(tmp_path / "adapter"), "mine")
    config = GenerationConfig(max_new_tokens=40, ignore_eos=True)
    own = {
        "adapter": config.replace(adapter="mine"),
        "beams": config.replace(num_beams=2),
        "regex": config.replace(constraint=Constraint.regex("(the sea is blue ){3}[0-9]{2,9}"), ignore_eos=False),
        "shift": config.replace(context_shift=4, max_new_tokens=60),
        "drawn": config.replace(temperature=0.2, seed=3),
    }
    prompts = {name: repetitive(random.Random(len(name)), 80) for name in own}
    prompts["regex"] = model.tokenizer.encode("the sea is blue the sea is blue")
    prompts["shift"] = repetitive(random.Random(9), model.context_length - 20)
    plain = {name: model.generate(prompts[name], own[name]) for name in own}
    asked = [(prompts[name], each if name == "beams" else guessing(each)) for name, each in own.items()]
    answers = together(model, asked)
    model.unload_adapter("mine")
    for name, answer in zip(own, answers, strict=True):
        assert (answer.token_ids, answer.finish_reason) == (plain[name].token_ids, plain[name].finish_reason), name
        assert name == "beams" or answer.timings.drafted_tokens, name


@needs_mirrors
def test_a_draft_guesses_for_requests_in_company(model: LanguageModel) -> None:
    draft = load(tiny_model_path())
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True)
    prompts = [repetitive(random.Random(seed), 50) for seed in range(3)]
    asked = config.replace(speculation=draft, exact_speculation=True)
    for prompt, answer in zip(prompts, together(model, [(prompt, asked) for prompt in prompts]), strict=True):
        assert answer.token_ids == model.generate(prompt, config).token_ids
        assert answer.timings.accepted_tokens > 10  # it is the same model


@pytest.mark.parametrize("exact", [False, True])
def test_nothing_is_guessed_beyond_the_tokens_that_an_answer_may_have(model: LanguageModel, exact: bool) -> None:
    """The draft is the same model: what is wrong of its guesses is that they come too late."""
    config = GenerationConfig(max_new_tokens=14, ignore_eos=True)
    config = config.replace(speculation=load(tiny_model_path()), exact_speculation=exact)
    prompts = [repetitive(random.Random(seed), 20) for seed in range(3)]
    answers = [model.generate(prompts[0], config), *together(model, [(prompts[0], config)])]
    answers += together(model, [(prompt, config) for prompt in prompts])
    for answer in answers:
        assert answer.usage.completion_tokens == 14
        assert answer.timings.drafted_tokens == answer.timings.accepted_tokens
    assert sum(answer.timings.drafted_tokens for answer in answers) > 10 or not hasattr(os, "memfd_create")


@needs_mirrors
def test_a_draft_that_fails_ends_the_request_that_it_guesses_for_alone(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = load(tiny_model_path())
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True)
    prompts = [repetitive(random.Random(seed), 50) for seed in range(3)]
    calls = itertools.count()
    compute = draft.session.forward

    def fail_later(*arguments: Any, **more: Any) -> Any:
        if next(calls) > 4:
            raise ProviderError("the draft fails")
        return compute(*arguments, **more)

    monkeypatch.setattr(draft.session, "forward", fail_later)
    with Engine(model) as engine:
        with held(engine):
            beside = [engine.submit(prompt, guessing(config)) for prompt in prompts[:2]]
            failing = engine.submit(prompts[2], config.replace(speculation=draft, exact_speculation=True))
        with pytest.raises(ProviderError, match="the draft fails"):
            edgelm.join(failing)
        for prompt, generation in zip(prompts, beside, strict=False):
            assert edgelm.join(generation).token_ids == model.generate(prompt, config).token_ids


@needs_mirrors
def test_a_request_whose_draft_has_no_memory_waits_for_the_others_which_go_on(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = load(tiny_model_path())
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True)
    prompts = [repetitive(random.Random(seed), 50) for seed in range(3)]
    compute = draft.session.forward

    def fail_beside_others(*arguments: Any, **more: Any) -> Any:
        if engine.stats.active > 1:
            raise OutOfMemoryError("no memory")
        return compute(*arguments, **more)

    monkeypatch.setattr(draft.session, "forward", fail_beside_others)
    with Engine(model) as engine:
        with held(engine):
            generations = [engine.submit(prompts[0], config.replace(speculation=draft, exact_speculation=True))]
            generations += [engine.submit(prompt, config) for prompt in prompts[1:]]
        answers = [edgelm.join(generation) for generation in generations]
        assert engine.stats.preempted == 1
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == model.generate(prompt, config).token_ids
    assert answers[0].timings.accepted_tokens > 5


@needs_mirrors
@pytest.mark.parametrize("room", range(190, 250, 15))
def test_guesses_in_company_take_no_more_memory_than_there_is(model: LanguageModel, room: int) -> None:
    prompts = [repetitive(random.Random(seed), 90) for seed in (8, 9)]
    config = GenerationConfig(ignore_eos=True, max_new_tokens=60)
    options = EngineOptions(max_kv_bytes=room * model.config.kv_bytes_per_token)
    answers = together(model, [(prompt, guessing(config)) for prompt in prompts], options)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == model.generate(prompt, config).token_ids
        assert answer.timings.accepted_tokens > 5


@pytest.mark.parametrize("refused", ["always", "when it grows", "when a place is to show another row"])
def test_without_the_memory_for_it_requests_in_company_guess_nothing(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("no memory")

    made = 0

    def first_only(*arguments: object) -> MirroredBuffers:
        nonlocal made
        made += 1
        return MirroredBuffers(*arguments) if made == 1 else refuse()  # type: ignore[arg-type]

    config = GenerationConfig(max_new_tokens=GROWTH_STEP, ignore_eos=True)
    prompts = [repetitive(random.Random(seed), 70) for seed in range(3)]
    if refused == "when a place is to show another row":
        monkeypatch.setattr(MirroredBuffers, "show", refuse)
    else:
        monkeypatch.setattr(kv_batch, "MirroredBuffers", refuse if refused == "always" else first_only)
    answers = together(model, [(prompt, guessing(config)) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == model.generate(prompt, config).token_ids
    drafted = sum(answer.timings.drafted_tokens for answer in answers)
    if refused == "always":
        assert drafted == 0
    elif refused == "when a place is to show another row":
        assert drafted <= 3 * 7  # in the first step that wanted to


@needs_mirrors
def test_requests_guess_again_when_those_that_had_no_memory_for_it_have_their_ends(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("no memory")

    config = guessing(GenerationConfig(max_new_tokens=40, ignore_eos=True))
    prompts = [repetitive(random.Random(seed), 70) for seed in range(3)]
    with Engine(model) as engine:
        with monkeypatch.context() as short:
            short.setattr(kv_batch, "MirroredBuffers", refuse)
            without = [edgelm.join(generation) for generation in [engine.submit(prompt, config) for prompt in prompts]]
        answers = [edgelm.join(generation) for generation in [engine.submit(prompt, config) for prompt in prompts]]
    assert not any(answer.timings.drafted_tokens for answer in without)
    assert sum(answer.timings.accepted_tokens for answer in answers) > 10
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in without]


def test_a_lone_request_guesses_in_either_mode(model: LanguageModel) -> None:
    prompt, config = repetitive(random.Random(8), 90), GenerationConfig(max_new_tokens=50, ignore_eos=True)
    plain = model.generate(prompt, config)
    with Engine(model) as engine:
        answers = [edgelm.join(engine.submit(prompt, guessing(config, exact=exact))) for exact in (False, True)]
    # The tiny model is plain float32: no near tie turns on a difference of 1e-6.
    assert [answer.token_ids for answer in answers] == [plain.token_ids] * 2
    assert answers[0].timings.accepted_tokens > 5
    assert hasattr(os, "memfd_create") is (answers[1].timings.accepted_tokens > 5)


@pytest.mark.parametrize("room", range(150, 166, 3))
def test_guesses_fill_the_memory_of_an_engine_to_the_token_that_plain_ones_do(model: LanguageModel, room: int) -> None:
    prompt, config = repetitive(random.Random(8), 90), GenerationConfig(ignore_eos=True)
    with Engine(model, EngineOptions(max_kv_bytes=room * model.config.kv_bytes_per_token)) as engine:
        plain, guessed = (
            edgelm.join(engine.submit(prompt, config.replace(speculation=speculation)))
            for speculation in (None, "prompt_lookup")
        )
    assert guessed.timings.accepted_tokens > 5
    assert guessed.token_ids == plain.token_ids
    assert (guessed.finish_reason, len(plain.token_ids)) == ("length", room - 90 + 1)


def test_requests_of_an_engine_speculate_with_stops_constraints_and_the_end_of_the_context(
    model: LanguageModel,
) -> None:
    pytest.importorskip("llguidance")
    cases = [
        (prompt, config.replace(temperature=0.0, mirostat_tau=0.0, logprobs=None))
        for prompt, config in configs(20, seed=4)
    ]
    cases.append((repetitive(random.Random(3), model.context_length - 20), GenerationConfig(ignore_eos=True)))
    regex = Constraint.regex("(the sea is blue ){3}[0-9]{2,9}")
    cases.append((model.tokenizer.encode("the sea is blue the sea is blue"), GenerationConfig(constraint=regex)))
    with Engine(model) as engine:
        for prompt, config in cases:
            plain = model.generate(prompt, config)
            got = edgelm.join(engine.submit(prompt, config.replace(speculation="prompt_lookup")))
            assert (got.token_ids, got.text, got.finish_reason) == (plain.token_ids, plain.text, plain.finish_reason)

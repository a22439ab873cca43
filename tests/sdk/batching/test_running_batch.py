"""Requests computed together, in any company, against each of them alone."""

import random
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from held_engine import held

import edgelm
from edgelm import Chunk, Completion, Constraint, Engine, EngineOptions, Generation, GenerationConfig, LanguageModel
from edgelm.decoding.answer import join
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.session import PREFILL_CHUNK
from edgelm.testing import tiny_model_path


def fresh(path: Path) -> LanguageModel:
    model = edgelm.load(path, edgelm.SessionOptions(threads=1))
    model.prefixes = PrefixCache(model.config, 0)
    return model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return fresh(tiny_model_path())


@dataclass
class Case:
    prompt: list[int]
    config: GenerationConfig
    cancel_after: int | None = None  # chunks


def cases(count: int, seed: int, vocab_size: int, longest: int, answer: int) -> list[Case]:
    """Prompts of 1 to `longest` tokens, greedy or sampled, with stops, penalties, logprobs and cancellations."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        config = GenerationConfig(
            max_new_tokens=draw.randint(1, answer),
            ignore_eos=draw.random() < 0.8,
            temperature=draw.choice([0.0, 0.0, 0.8, 1.5]),
            top_p=draw.choice([1.0, 0.9]),
            repetition_penalty=draw.choice([1.0, 1.2]),
            seed=i,
            stop_token_ids=tuple(draw.sample(range(vocab_size), 3)),
            logprobs=draw.choice([None, None, 2]),
        )
        length = draw.choice([1, 2, draw.randint(3, 40), draw.randint(3, longest), PREFILL_CHUNK + 1])
        prompt = [draw.randrange(5, vocab_size) for _ in range(length)]
        made.append(Case(prompt, config, draw.choice([None] * 5 + [draw.randint(0, 5)])))
    return made


def read(generation: Generation, cancel_after: int | None) -> list[Chunk]:
    chunks = []
    for chunk in generation:
        chunks.append(chunk)
        if len(chunks) == cancel_after:
            generation.cancel()
    return chunks


def check_equal(chunks: list[Chunk], solo: Completion, cancelled: bool) -> None:
    got = join(chunks)
    if cancelled and got.finish_reason == "cancelled":
        assert got.token_ids == solo.token_ids[: len(got.token_ids)]
        assert solo.text.startswith(got.text.rstrip("�"))  # it may end in the middle of a character
        return
    assert (got.token_ids, got.text, got.finish_reason) == (solo.token_ids, solo.text, solo.finish_reason)
    assert got.logprobs == solo.logprobs


def check_all(model: LanguageModel, chosen: list[Case], options: EngineOptions, pause: float = 0.0) -> Engine:
    solo = [model.generate(case.prompt, case.config) for case in chosen]
    got: dict[int, list[Chunk]] = {}
    with Engine(model, options) as engine:
        readers = []
        with nullcontext() if pause else held(engine):
            for i, case in enumerate(chosen):
                generation = engine.submit(case.prompt, case.config, priority=i % 3)

                def work(i: int = i, generation: Generation = generation) -> None:
                    got[i] = read(generation, chosen[i].cancel_after)

                readers.append(threading.Thread(target=work))
                readers[-1].start()
                time.sleep(pause * random.Random(i).random())
        for reader in readers:
            reader.join()
    for i, case in enumerate(chosen):
        check_equal(got[i], solo[i], case.cancel_after is not None)
    return engine


@pytest.mark.parametrize(("max_batch", "pause"), [(1, 0.0), (3, 0.002), (8, 0.004)])
def test_answers_in_changing_company_are_those_of_each_alone(
    model: LanguageModel, max_batch: int, pause: float
) -> None:
    chosen = cases(14, seed=max_batch, vocab_size=320, longest=300, answer=40)
    check_all(model, chosen, EngineOptions(max_batch=max_batch), pause)


def test_answers_are_the_same_when_memory_runs_out_and_requests_are_computed_again(model: LanguageModel) -> None:
    chosen = cases(12, seed=9, vocab_size=320, longest=200, answer=150)
    options = EngineOptions(max_kv_bytes=500 * model.config.kv_bytes_per_token)
    assert check_all(model, chosen, options).stats.preempted > 3


def test_answers_are_the_same_when_they_wait_for_their_readers_and_are_computed_again(model: LanguageModel) -> None:
    chosen = cases(12, seed=10, vocab_size=320, longest=200, answer=40)
    check_all(model, chosen, EngineOptions(max_batch=3, max_unread=1))


@pytest.mark.parametrize("room", [10_000, 210])
def test_constrained_answers_and_what_is_forced_in_them_are_those_of_each_alone(
    model: LanguageModel, room: int
) -> None:
    pytest.importorskip("llguidance")
    constraints = [
        Constraint.json_schema({"type": "object", "properties": {"name": {"enum": ["anna", "bert"]}}}),
        Constraint.regex("(the sea is blue ){3}[0-9]{2,9}"),
        Constraint.choices(["yes, certainly", "no, never"]),
        None,
    ]
    chosen = cases(8, seed=6, vocab_size=320, longest=60, answer=70)
    for i, case in enumerate(chosen):
        constraint = constraints[i % 4]
        case.config = case.config.replace(constraint=constraint, stop_token_ids=(), ignore_eos=constraint is None)
    engine = check_all(model, chosen, EngineOptions(max_kv_bytes=room * model.config.kv_bytes_per_token))
    assert (engine.stats.preempted > 0) == (room < 1000)


@pytest.mark.parametrize("answers", [False, True])
def test_kept_prompts_change_no_bit(answers: bool) -> None:
    solo, kept = fresh(tiny_model_path()), fresh(tiny_model_path())
    kept.prefixes = PrefixCache(kept.config, 1 << 20, answers=answers)
    draw = random.Random(4)
    base = [draw.randrange(5, 320) for _ in range(400)]
    with Engine(kept) as engine:
        for round_ in range(4):
            prompts = [
                base[: draw.randint(1, 400)] + [draw.randrange(5, 320) for _ in range(draw.randint(0, 80))]
                for _ in range(3)
            ]
            config = GenerationConfig(max_new_tokens=8, ignore_eos=True, temperature=1.0, seed=round_, logprobs=0)
            generations = [engine.submit(prompt, config) for prompt in prompts]
            for prompt, generation in zip(prompts, generations, strict=True):
                check_equal(list(generation), solo.generate(prompt, config), cancelled=False)
    assert engine.stats.cached_tokens > 1000


def test_a_step_of_many_rows_has_the_bits_of_each_row_alone(model: LanguageModel) -> None:
    from edgelm.memory.kv_batch import KVBatch

    session, draw = model.session, random.Random(2)
    batch = KVBatch(model.config)
    alone = []
    for length in (5, 300, 33, 128, 64, 1, 250):
        ids = [draw.randrange(5, 320) for _ in range(length)]
        row, cache = batch.add(), session.new_cache()
        session.forward(ids, row)
        session.forward(ids, cache)
        batch.activate(row)
        alone.append(cache)
    for _ in range(90):  # past a growth of the buffers
        ids = [draw.randrange(5, 320) for _ in alone]
        rows_BV = session.forward_rows(ids, batch)
        for id_, cache, row_V in zip(ids, alone, rows_BV, strict=True):
            np.testing.assert_array_equal(row_V, session.forward((id_,), cache)[0])

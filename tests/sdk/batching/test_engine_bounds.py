"""What an engine takes on, in which order, and what is left of it at its end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_engine import held
from numpy.typing import NDArray

import edgelm
from edgelm import Chunk, Constraint, Engine, EngineOptions, Generation, GenerationConfig, LanguageModel
from edgelm.batching.request import Request
from edgelm.batching.running_batch import RunningBatch
from edgelm.decoding.answer import join
from edgelm.memory.kv_batch import KVBatch, KVRow
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.stop_switch import StoppedError, StopSwitch
from edgelm.testing import ScriptedDecoder, scripted_model, tiny_model_path


def test_an_engine_that_was_drained_takes_no_more_requests() -> None:
    engine = Engine(scripted_model("Fine."))
    engine.close(drain=True)
    with pytest.raises(edgelm.EdgeLMError, match="The engine is closed; make a new one"):
        engine.submit("x")


def test_an_error_that_is_kept_does_not_keep_the_memory_of_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[weakref.ref[np.ndarray]] = []

    def fail(batch: KVBatch, row: KVRow) -> None:
        assert batch.capacity > 0
        buffers.extend(map(weakref.ref, batch.buffers))
        raise MemoryError("no memory for the batch")

    monkeypatch.setattr(KVBatch, "activate", fail)
    with Engine(scripted_model("Fine.")) as engine:
        with pytest.raises(MemoryError, match="no memory for the batch") as caught:
            join(engine.submit("x"))
        assert caught.tb is not None
        gc.collect()
        assert {buffer() for buffer in buffers} == {None}


def test_a_closed_engine_leaves_nothing_behind() -> None:
    engine = Engine(scripted_model("Fine."))
    left = weakref.ref(engine)
    engine.close()
    del engine
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("answers", ["none", "read", "dropped", "failed"])
def test_an_engine_that_nobody_has_any_more_ends_by_itself_and_keeps_nothing(answers: str) -> None:
    model = scripted_model("Fine.")
    engine, left = Engine(model), weakref.ref(model.session)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == f"edgelm-engine-{model.name}"]
    if answers == "read":
        assert join(engine.submit("x")).text == "Fine."
    elif answers == "dropped":
        engine.submit("x")
    elif answers == "failed":
        with pytest.raises(edgelm.ConfigError):
            join(engine.submit("x", GenerationConfig(processors=[lambda logits_V, ids: logits_V[1:]])))
    del engine, model
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("reads", ["in a loop", "in an event loop"])
@pytest.mark.usefixtures("no_collection")
def test_an_error_that_was_read_and_dropped_keeps_no_model(reads: str) -> None:
    async def read(generation: Generation) -> None:
        try:
            async for _ in generation:
                pass
        except edgelm.ConfigError:
            failed.append(True)

    model, failed = edgelm.load(tiny_model_path()), list[bool]()
    left = weakref.ref(model.session)
    with Engine(model) as engine:
        generation = engine.submit("x", GenerationConfig(processors=[lambda logits_V, ids: logits_V[1:]]))
        if reads == "in an event loop":
            asyncio.run(read(generation))
        else:
            try:
                join(generation)
            except edgelm.ConfigError:
                failed.append(True)
    del model, engine, generation
    assert failed
    assert left() is None


def test_an_answer_is_made_though_its_engine_is_dropped(model: LanguageModel) -> None:
    answer = Engine(model).submit("x", GenerationConfig(max_new_tokens=30, ignore_eos=True))
    gc.collect()
    assert join(answer).usage.completion_tokens == 30


def test_a_batch_may_have_more_prompts_than_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, submitted, goes_on = Engine._queue, [0], threading.Event()

    def counting(engine: Engine, *arguments: Any) -> Generation:
        submitted[0] += 1
        try:
            return submit(engine, *arguments)
        except edgelm.QueueFullError:
            goes_on.set()
            raise
        finally:
            if submitted[0] == 80:
                goes_on.set()

    def wait(logits_V: NDArray[np.float32], _: np.random.Generator) -> int:
        goes_on.wait()
        return int(logits_V.argmax())

    monkeypatch.setattr(Engine, "_queue", counting)
    config = GenerationConfig(sampler=wait, max_new_tokens=1)
    assert len(scripted_model("Fine.").generate_batch(["x"] * 80, config, max_batch=2)) == 80


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (GenerationConfig(logit_bias={9999: 1.0}), "logit_bias names token 9999; the model's ids are 0 to 319"),
        (GenerationConfig(logit_bias={-1: 1.0}), "logit_bias names token -1; the model's ids are 0 to 319"),
        (GenerationConfig(stop_token_ids=[320]), "stop_token_ids names token 320; the model's ids are 0 to 319"),
    ],
)
def test_a_token_that_does_not_exist_is_refused_before_anything_is_computed(
    config: GenerationConfig, told: str
) -> None:
    model = scripted_model("Fine.")
    assert isinstance(model.session, ScriptedDecoder)
    with pytest.raises(edgelm.ConfigError, match=told):
        model.generate_batch(["x", "y"], [GenerationConfig(), config])
    with pytest.raises(edgelm.ConfigError, match=told):
        model.stream("x", config)
    with Engine(model) as engine, pytest.raises(edgelm.ConfigError, match=told):
        engine.submit("x", config)
    assert model.session.forwarded == []


def test_answers_of_a_batch_outgrow_the_original_context_of_longrope_as_they_do_alone(longrope_package: Path) -> None:
    model = edgelm.load(longrope_package, edgelm.SessionOptions(threads=1))
    prompts = [[5, 6, 7, 8] * length for length in (2, 10, 26)]  # the last one is longer itself
    configs = [GenerationConfig(max_new_tokens=count, ignore_eos=True) for count in (50, 60, 30)]
    answers = model.generate_batch(prompts, configs)
    for prompt, config, answer in zip(prompts, configs, answers, strict=True):
        assert answer.token_ids == model.generate(prompt, config).token_ids
        assert len(answer.token_ids) == config.max_new_tokens
    (open_end,) = model.generate_batch(prompts[:1], GenerationConfig(ignore_eos=True))
    assert len(open_end.token_ids) == model.context_length - len(prompts[0]) + 1


def test_an_engine_shifts_within_the_original_context_of_longrope_or_ends_there(longrope_package: Path) -> None:
    model, prompt = edgelm.load(longrope_package, edgelm.SessionOptions(threads=1)), [5, 6, 7, 8] * 5
    config = GenerationConfig(max_new_tokens=60, ignore_eos=True)
    with Engine(model) as engine:
        for keep, tokens in ((0, 60), (32, 60), (33, 64 - len(prompt) + 1)):
            answer = edgelm.join(engine.submit(prompt, config.replace(context_shift=keep)))
            assert (answer.finish_reason, len(answer.token_ids)) == ("length", tokens)


def test_a_batch_takes_at_least_one_prompt_at_once() -> None:
    with pytest.raises(edgelm.ConfigError, match="max_batch is 0; it must be a whole number of 1 or more"):
        scripted_model("Fine.").generate_batch(["x"], max_batch=0)


def test_a_batch_with_a_bad_prompt_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[object] = []
    monkeypatch.setattr(Engine, "submit", lambda engine, prompt, config: submitted.append(prompt))
    with pytest.raises(edgelm.ContextLengthError):
        scripted_model("Fine.").generate_batch(["x", ""])
    assert submitted == []


def test_short_prompts_go_ahead_of_a_long_one_every_other_time() -> None:
    model = scripted_model("Fine.")
    assert isinstance(model.session, ScriptedDecoder)
    one = GenerationConfig(max_new_tokens=1)
    with Engine(model) as engine:
        with held(engine):
            requests = [engine.submit([7] * 640, one), *(engine.submit([8 + i] * 10, one) for i in range(5))]
        for request in requests:
            edgelm.join(request)
    _, *pieces = map(len, model.session.forwarded)
    assert pieces[:7] == [10, 64, 10, 10, 10, 10, 64]  # the first goes ahead; then each in its turn


@pytest.mark.parametrize("speculation", [None, "prompt_lookup"])
def test_what_a_constraint_forces_ends_with_the_context(model: LanguageModel, speculation: str | None) -> None:
    pytest.importorskip("llguidance")
    said = "certainly, and for a long while"
    config = GenerationConfig(constraint=Constraint.choices([said]), speculation=speculation)
    prompt = [5] * (model.context_length - 4)
    with Engine(model) as engine:
        answers = [model.generate(prompt, config), edgelm.join(engine.submit(prompt, config))]
    for answer in answers:
        assert (answer.usage.completion_tokens, answer.finish_reason) == (5, "length")
        assert said.startswith(answer.text)


@pytest.mark.parametrize(("max_new_tokens", "tokens"), [(5, 5), (None, 6)])
@pytest.mark.parametrize("speculation", [None, "prompt_lookup"])
def test_what_a_constraint_forces_ends_with_the_memory(
    model: LanguageModel, max_new_tokens: int | None, tokens: int, speculation: str | None
) -> None:
    pytest.importorskip("llguidance")
    said = "certainly, and for a long while"
    config = GenerationConfig(
        constraint=Constraint.choices([said]), max_new_tokens=max_new_tokens, speculation=speculation
    )
    with Engine(model, EngineOptions(max_kv_bytes=100 * model.config.kv_bytes_per_token)) as engine:
        answer = edgelm.join(engine.submit([5] * 95, config))  # the last token is not in the memory
    assert (answer.usage.completion_tokens, answer.finish_reason) == (tokens, "length")
    assert said.startswith(answer.text)


@pytest.mark.parametrize(("max_batch", "stops"), [(1, False), (2, True)])
def test_a_piece_of_a_long_prompt_is_stopped_only_for_a_short_one_that_can_start(
    monkeypatch: pytest.MonkeyPatch, max_batch: int, stops: bool
) -> None:
    model, one = scripted_model("Fine."), GenerationConfig(max_new_tokens=1)
    forward, began, goes_on = model.session.forward, threading.Event(), threading.Event()
    pressed: list[bool] = []

    def hold(ids: list[int], cache: KVCache, *, stop: StopSwitch | None = None, **rest: Any) -> NDArray[np.float32]:
        if stop is not None and not began.is_set():
            began.set()
            goes_on.wait()
            pressed.append(stop.is_pressed)
        return forward(ids, cache, stop=stop, **rest)

    monkeypatch.setattr(model.session, "forward", hold)
    with Engine(model, EngineOptions(max_batch=max_batch)) as engine:
        requests = [engine.submit([7] * 600, one)]
        began.wait()
        requests.append(engine.submit([8], one))
        goes_on.set()
        for request in requests:
            edgelm.join(request)
    assert pressed == [stops]


def test_a_piece_that_was_stopped_once_is_finished_before_the_prompt_is_stopped_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, one = scripted_model("Fine."), GenerationConfig(max_new_tokens=1)
    forward, began, goes_on = model.session.forward, threading.Semaphore(0), threading.Semaphore(0)
    pressed: list[bool] = []

    def hold(ids: list[int], cache: KVCache, *, stop: StopSwitch | None = None, **rest: Any) -> NDArray[np.float32]:
        if stop is not None and len(ids) > 1:  # of the long prompt
            began.release()
            assert goes_on.acquire(timeout=60)
            pressed.append(stop.is_pressed)
            if stop.is_pressed:
                raise StoppedError
        return forward(ids, cache, stop=stop, **rest)

    monkeypatch.setattr(model.session, "forward", hold)
    with Engine(model) as engine:
        requests = [engine.submit([7] * 600, one)]
        for short in (8, 9, 10):
            assert began.acquire(timeout=60)
            requests.append(engine.submit([short], one))
            goes_on.release()
        goes_on.release(600)
        for request in requests:
            assert edgelm.join(request).usage.completion_tokens == 1
    assert pressed[:3] == [True, False, True]
    assert not any(pressed[3:])


@pytest.mark.parametrize(("prompt", "num_beams"), [(39, 1), (13, 2)])
def test_a_request_waits_until_it_fits_the_memory_with_the_next_token_of_each(
    model: LanguageModel, prompt: int, num_beams: int
) -> None:
    config = GenerationConfig(max_new_tokens=20, ignore_eos=True)
    # Beside the 60, 39 are left with a token for each: for 38 and one, or for 3 rows of 12 and one.
    with Engine(model, EngineOptions(max_kv_bytes=100 * model.config.kv_bytes_per_token)) as engine:
        with held(engine):
            first = engine.submit([5] * 60, config)
            second = engine.submit([6] * prompt, config.replace(num_beams=num_beams))
        for answer in (first, second):
            assert edgelm.join(answer).usage.completion_tokens == 20
    assert engine.stats.preempted == 0


@pytest.mark.parametrize("unread", [None, 1])
def test_an_answer_that_is_computed_again_counts_its_prompt_once(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, unread: int | None
) -> None:
    prompt, config = [11, 12, 13, 14] * 25, GenerationConfig(max_new_tokens=9, ignore_eos=True)
    monkeypatch.setattr(model, "prefixes", PrefixCache(model.config))
    with Engine(model, EngineOptions(max_batch=1, max_unread=unread)) as engine:
        first = engine.submit(prompt, config)
        edgelm.join(engine.submit([8, 9], config))  # for which it gives its place away, where it may not be unread
        answer = edgelm.join(first)
        assert (engine.stats.cached_tokens > 0) == (unread is not None)
    assert (answer.usage.cached_tokens, answer.timings.prefill_tokens) == (0, len(prompt))
    assert min(answer.timings.queued_seconds, answer.timings.prefill_seconds, answer.timings.decode_seconds) > 0


@pytest.mark.parametrize(("priorities", "loses"), [((0, 1), 0), ((1, 0), 1), ((2, 2), 1)])
def test_where_the_memory_is_full_the_least_and_youngest_request_waits(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, priorities: tuple[int, int], loses: int
) -> None:
    config, aside, lost = GenerationConfig(max_new_tokens=20, ignore_eos=True), RunningBatch.put_aside, set()

    def noting(batch: RunningBatch, request: Request) -> None:
        lost.add(request.number)
        aside(batch, request)

    monkeypatch.setattr(RunningBatch, "put_aside", noting)
    with Engine(model, EngineOptions(max_kv_bytes=100 * model.config.kv_bytes_per_token)) as engine:
        with held(engine):
            answers = [engine.submit([5 + i] * 40, config, priority=priorities[i]) for i in range(2)]
        for answer in answers:
            assert edgelm.join(answer).usage.completion_tokens == 20
    assert lost == {2 + loses}  # the first is the one that is held


def test_the_rest_of_a_prompt_that_a_piece_completes_goes_ahead_too() -> None:
    model, one = scripted_model("Fine."), GenerationConfig(max_new_tokens=1)
    assert isinstance(model.session, ScriptedDecoder)
    with Engine(model) as engine:
        with held(engine):
            requests = [engine.submit([7] * 640, one), engine.submit([8] * 100, one)]
        for request in requests:
            edgelm.join(request)
    _, *pieces = model.session.forwarded
    assert [(piece[0], len(piece)) for piece in pieces[:4]] == [(7, 64), (8, 64), (8, 36), (7, 64)]


def test_a_search_that_begins_again_has_all_of_its_memory_again(model: LanguageModel) -> None:
    prompt, config = [5, 6, 7, 8, 9] * 2, GenerationConfig(num_beams=3, max_new_tokens=15, ignore_eos=True)
    with Engine(model, EngineOptions(max_kv_bytes=100 * model.config.kv_bytes_per_token)) as engine:
        with held(engine):
            first = engine.submit([5] * 20, GenerationConfig(max_new_tokens=30, ignore_eos=True), priority=1)
            search = engine.submit(prompt, config)
        assert edgelm.join(first).usage.completion_tokens == 30
        assert edgelm.join(search).token_ids == model.generate(prompt, config).token_ids  # in 4 rows of 25
        assert engine.stats.preempted > 0


@pytest.mark.parametrize("is_async", [False, True])
def test_a_processor_that_waits_for_an_answer_of_its_own_engine_is_an_error(
    model: LanguageModel, is_async: bool
) -> None:
    inner: list[Generation] = []

    async def read() -> None:
        await anext(inner[0])

    def wait(logits_V: NDArray[np.float32], ids: Sequence[int]) -> None:
        assert model.generate("z", GenerationConfig(max_new_tokens=2)).token_ids  # which needs no engine
        inner.append(engine.submit("y", GenerationConfig(max_new_tokens=2, ignore_eos=True)))
        if is_async:
            asyncio.run(read())
        else:
            next(inner[0])

    with Engine(model) as engine:
        outer = engine.submit("x", GenerationConfig(processors=(wait,)))
        with pytest.raises(edgelm.EdgeLMError, match="waits for an answer of the engine that it computes for"):
            join(outer)
        assert join(inner[0]).usage.completion_tokens == 2


def test_what_a_constraint_forced_is_given_out_once_where_it_is_computed_again(model: LanguageModel) -> None:
    pytest.importorskip("llguidance")
    config = GenerationConfig(constraint=Constraint.regex("(the sea is blue ){3}[0-9]{2,9}"), max_new_tokens=60)
    with Engine(model, EngineOptions(max_batch=1, max_unread=1)) as engine:
        unread = engine.submit("x", config)
        edgelm.join(engine.submit("y", GenerationConfig(max_new_tokens=3)))  # for which it gives its place away
        answer = edgelm.join(unread)
    assert answer.text.startswith("the sea is blue the sea is blue the sea is blue ")
    assert answer.token_ids == model.generate("x", config).token_ids


def test_an_answer_rests_from_more_texts_than_may_be_unread_until_all_are_read() -> None:
    woken: list[bool] = []
    answer = Generation(lambda: woken.append(answer.is_full), lambda: None, max_unread=3)
    for _ in range(2):  # what was read counts no more
        for i in range(4):
            assert not answer.is_full
            answer.put(Chunk(text=str(i), token_ids=(i,)))
        assert answer.is_full
        for i in range(4):
            assert answer.is_full
            assert next(answer).text == str(i)
    assert woken == [False, False]


def test_a_long_answer_that_is_read_slowly_is_computed_again_only_a_few_times() -> None:
    answer, again, length = Generation(lambda: None, lambda: None, max_unread=1), 0, 2000
    for i in range(length):
        answer.put(Chunk(text=str(i), token_ids=(i,)))
        if answer.is_full:
            again += i + 1
            while answer.is_full:
                next(answer)
    assert again < 10 * length  # else 500 times

import asyncio
import threading
import time
from typing import Any

import pytest
from held_engine import held
from waiting import wait_for

import edgelm
from edgelm import Engine, EngineOptions, GenerationConfig, LanguageModel, OutOfMemoryError
from edgelm.batching.generation import Generation
from edgelm.batching.request import Request
from edgelm.batching.running_batch import RunningBatch
from edgelm.completion import Chunk, FinishReason
from edgelm.decoding.answer import Answer, join
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.stop_switch import StoppedError
from edgelm.testing import scripted_model

ENDLESS = GenerationConfig(ignore_eos=True)


def test_a_request_gets_the_chunks_of_stream(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=20, temperature=1.0, seed=3, logprobs=2)
    with Engine(model) as engine:
        got, expected = join(engine.submit("The sea", config)), model.generate("The sea", config)
    assert (got.text, got.token_ids, got.finish_reason) == (expected.text, expected.token_ids, expected.finish_reason)
    assert got.logprobs == expected.logprobs
    assert (got.usage, got.timings.prefill_tokens, got.timings.decode_tokens) == (expected.usage, 4, 19)
    assert min(got.timings.queued_seconds, got.timings.prefill_seconds, got.timings.decode_seconds) > 0


def test_async_iteration_yields_the_same_and_leaves_the_event_loop_free(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=30, ignore_eos=True)
    prompts = ["The sea", "A", "Once upon a time"]
    beats = 0

    async def read(engine: Engine, prompt: str) -> tuple[int, ...]:
        return tuple([id_ async for chunk in engine.submit(prompt, config) for id_ in chunk.token_ids])

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def main() -> list[tuple[int, ...]]:
        beating = asyncio.create_task(beat())
        with Engine(model) as engine:
            answers = await asyncio.gather(*(read(engine, prompt) for prompt in prompts))
        beating.cancel()
        return answers

    assert asyncio.run(main()) == [model.generate(prompt, config).token_ids for prompt in prompts]
    assert beats > 3


def test_cancel_ends_an_answer_within_one_step(model: LanguageModel) -> None:
    with Engine(model) as engine:
        generation = engine.submit("x", ENDLESS)
        next(generation)
        generation.cancel()
        assert list(generation)[-1].finish_reason == "cancelled"
        assert list(generation) == []


@pytest.mark.parametrize("deadline", [0.0, -1, float("-inf"), -(10**400)])
def test_a_deadline_ends_an_answer_as_cancelled(model: LanguageModel, deadline: float) -> None:
    with Engine(model) as engine:
        generation = engine.submit("x", ENDLESS, deadline=deadline)
        completion = join(generation)
    assert completion.finish_reason == "cancelled"
    assert not generation.cancelled  # by nobody: a service tells a deadline from a client who left


def test_a_full_queue_refuses_at_once(model: LanguageModel) -> None:
    with Engine(model, EngineOptions(max_batch=1, max_queue=0)) as engine:
        engine.submit("x", ENDLESS)
        with pytest.raises(edgelm.QueueFullError, match=r"1 request at work or waiting: .* lets 0 wait \(max_queue\)"):
            engine.submit("y")


def test_the_place_of_an_answer_is_free_when_its_reader_has_the_last_chunk(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, goes_on = RunningBatch._finish, threading.Event()

    def slow_finish(batch: RunningBatch, request: Request, text: str, reason: FinishReason) -> None:
        finish(batch, request, text, reason)
        goes_on.wait()  # the engine has not come to look at what is done

    monkeypatch.setattr(RunningBatch, "_finish", slow_finish)
    with Engine(model, EngineOptions(max_batch=1, max_queue=0)) as engine:
        join(engine.submit("The sea", GenerationConfig(max_new_tokens=2)))
        assert (engine.stats.active, engine.stats.queued, engine.stats.finished) == (0, 0, 1)
        second = engine.submit("The sea", GenerationConfig(max_new_tokens=2))
        goes_on.set()
        assert join(second).usage.completion_tokens == 2


def test_a_bad_prompt_is_refused_at_once(model: LanguageModel) -> None:
    with Engine(model) as engine:
        with pytest.raises(edgelm.ContextLengthError):
            engine.submit("")
        with pytest.raises(edgelm.TokenizerError):
            engine.submit([5, 9999])


def test_close_cancels_what_runs_and_waits_and_drain_finishes_it(model: LanguageModel) -> None:
    engine = Engine(model, EngineOptions(max_batch=1))
    generations = [engine.submit("x", ENDLESS) for _ in range(3)]
    next(generations[0])
    engine.close()
    assert [list(generation)[-1].finish_reason for generation in generations] == ["cancelled"] * 3
    with pytest.raises(edgelm.EdgeLMError, match="The engine is closed; make a new one"):
        engine.submit("x")
    engine = Engine(model)
    generations = [engine.submit("x", GenerationConfig(max_new_tokens=5, ignore_eos=True)) for _ in range(3)]
    engine.close(drain=True)
    assert [list(generation)[-1].finish_reason for generation in generations] == ["length"] * 3


@pytest.mark.parametrize(("drain", "reason"), [(False, "cancelled"), (True, "length")])
def test_an_engine_is_closed_from_within_its_own_step(model: LanguageModel, drain: bool, reason: str) -> None:
    engine, submitted = Engine(model, EngineOptions(max_batch=1)), threading.Event()

    def close(logits_V: object, token_ids: object) -> None:
        submitted.wait()
        engine.close(drain=drain)

    settings = GenerationConfig(max_new_tokens=5, ignore_eos=True)
    generations = [engine.submit("x", settings.replace(processors=(close,))), engine.submit("y", settings)]
    submitted.set()
    assert [list(generation)[-1].finish_reason for generation in generations] == [reason] * 2
    engine.close()


def test_an_error_reaches_the_reader_of_its_answer_alone() -> None:
    model = scripted_model("Fine.")
    with Engine(model) as engine:
        bad = engine.submit("x", GenerationConfig(processors=[lambda logits_V, ids: logits_V[1:]]))
        good = engine.submit("x")
        with pytest.raises(edgelm.ConfigError, match="processor"):
            list(bad)
        assert join(good).text == "Fine."


def test_many_threads_submit_to_one_engine(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, seed=5)
    got: dict[int, tuple[int, ...]] = {}

    def work(i: int) -> None:
        got[i] = join(engine.submit(f"Prompt number {i}", config)).token_ids

    with Engine(model) as engine:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [got[i] for i in range(12)] == [model.generate(f"Prompt number {i}", config).token_ids for i in range(12)]


@pytest.mark.parametrize(
    ("name", "value"), [("max_batch", 0), ("max_batch", 1.5), ("max_queue", -1), ("max_kv_bytes", 0), ("max_unread", 0)]
)
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(edgelm.ConfigError, match=f"{name} is {value!r}; it must be a whole number of"):
        EngineOptions(**{name: value})  # type: ignore[arg-type]


def test_a_batch_is_answered_in_the_order_of_its_prompts_as_each_alone(model: LanguageModel) -> None:
    prompts = ["The sea", [9, 8, 7], "A", "Once upon a time, " * 20] * 4
    configs = [GenerationConfig(max_new_tokens=3 + i, temperature=1.0, seed=i) for i in range(len(prompts))]
    got = model.generate_batch(prompts, configs, max_batch=3)
    expected = [model.generate(prompt, config) for prompt, config in zip(prompts, configs, strict=True)]
    assert [completion.token_ids for completion in got] == [completion.token_ids for completion in expected]
    assert [c.text for c in model.generate_batch(prompts[:2], configs[0])] == [
        model.generate(prompt, configs[0]).text for prompt in prompts[:2]
    ]
    assert model.generate_batch([]) == []


def test_each_prompt_of_a_batch_is_made_ready_once(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """To encode it, and to compile what it is held to, may take longer than to answer."""
    asked: list[object] = []
    answer = LanguageModel.answer
    monkeypatch.setattr(LanguageModel, "answer", lambda self, *prompt: asked.append(prompt) or answer(self, *prompt))
    model.generate_batch(["A", "B", "C"], GenerationConfig(max_new_tokens=1))
    assert [prompt for prompt, _ in asked] == ["A", "B", "C"]


def test_a_batch_needs_a_config_for_each_prompt_and_good_prompts(model: LanguageModel) -> None:
    with pytest.raises(edgelm.ConfigError, match="There are 1 configs for 2 prompts; give one, or one for each"):
        model.generate_batch(["a", "b"], [GenerationConfig()])
    with pytest.raises(edgelm.ContextLengthError, match=r"^prompts\[1\]: The text has too few tokens: 0; it needs 1"):
        model.generate_batch(["a", ""])
    with pytest.raises(edgelm.TokenizerError, match=r"^prompts\[2\]: The text has token id 320; the model's are 0 to"):
        model.generate_batch(["a", "b", [320]])
    with pytest.raises(edgelm.ConfigError, match="generate_batch takes a list of prompts; put the one text into a"):
        model.generate_batch("abc")


@pytest.mark.parametrize(
    ("name", "value"), [("priority", "high"), ("priority", 0.5), ("deadline", "5"), ("deadline", float("nan"))]
)
def test_what_would_stop_the_worker_is_refused(model: LanguageModel, name: str, value: Any) -> None:
    with Engine(model) as engine:
        with pytest.raises(
            edgelm.ConfigError, match=rf"{name} is {value!r}; it must be a (whole number\.|number of seconds)"
        ):
            engine.submit("x", **{name: value})
        assert join(engine.submit("x", GenerationConfig(max_new_tokens=1))).usage.completion_tokens == 1


def test_higher_priorities_start_first(model: LanguageModel) -> None:
    with Engine(model, EngineOptions(max_batch=1)) as engine:
        first = engine.submit("x", ENDLESS)
        next(first)
        waiting = [engine.submit("x", ENDLESS, priority=priority) for priority in (0, 2, 1, 2)]
        assert (engine.stats.active, engine.stats.queued) == (1, 4)
        first.cancel()
        for number, left in ((1, 3), (3, 2), (2, 1), (0, 0)):
            next(waiting[number])  # would wait for ever behind one that started out of turn
            assert engine.stats.queued == left
            waiting[number].cancel()


def test_the_stats_know_a_request_at_work_until_its_reader_has_the_end(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []
    put = Generation.put

    def watched(generation: Generation, item: Chunk) -> None:
        stats = engine.stats
        if item.finish_reason is not None:
            seen.append((stats.active, stats.queued, stats.finished))
        put(generation, item)

    monkeypatch.setattr(Generation, "put", watched)
    with Engine(model) as engine:
        join(engine.submit("The sea", GenerationConfig(max_new_tokens=3)))
        assert (engine.stats.active, engine.stats.queued, engine.stats.finished) == (0, 0, 1)
    assert seen == [(1, 0, 0)]


def test_the_stats_count_what_was_done(model: LanguageModel) -> None:
    with Engine(model) as engine:
        for _ in range(2):
            join(engine.submit([7] * 100, GenerationConfig(max_new_tokens=5, ignore_eos=True)))
    stats = engine.stats
    assert (stats.active, stats.queued, stats.kv_bytes, stats.finished) == (0, 0, 0, 2)
    assert stats.prompt_tokens + stats.cached_tokens == 200
    assert stats.generated_tokens == 10
    assert stats.cached_tokens >= 96
    assert stats.prefix_bytes > 0


def test_a_slow_reader_delays_nobody_and_loses_nothing(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=50, ignore_eos=True)
    with Engine(model) as engine:
        slow = engine.submit("x", config)
        assert join(engine.submit("y", config)).usage.completion_tokens == 50
        assert join(slow).token_ids == model.generate("x", config).token_ids


LOGPROBS = GenerationConfig(max_new_tokens=50, ignore_eos=True, logprobs=4)  # five texts a token, and one a chunk


def test_an_answer_that_nobody_reads_gives_its_place_to_others_and_goes_on_when_it_is_read(
    model: LanguageModel,
) -> None:
    with Engine(model, EngineOptions(max_batch=1, max_unread=30)) as engine:
        unread = engine.submit("x", LOGPROBS)
        assert join(engine.submit("y", LOGPROBS)).usage.completion_tokens == 50
        assert engine.stats.generated_tokens < 50 + 15
        assert (engine.stats.active, engine.stats.queued, engine.stats.kv_bytes) == (0, 1, 0)
        read, alone = join(unread), model.generate("x", LOGPROBS)
        assert (read.token_ids, read.logprobs) == (alone.token_ids, alone.logprobs)


@pytest.mark.parametrize("drain", [True, False])
def test_an_engine_that_is_closed_waits_for_no_reader(model: LanguageModel, drain: bool) -> None:
    engine = Engine(model, EngineOptions(max_batch=1, max_unread=30))
    unread = engine.submit("x", LOGPROBS)
    join(engine.submit("y", LOGPROBS))
    engine.close(drain=drain)
    answer = join(unread)
    assert (answer.finish_reason, answer.usage.completion_tokens == 50) == (
        ("length", True) if drain else ("cancelled", False)
    )


def test_an_answer_that_waits_for_its_reader_can_be_cancelled(model: LanguageModel) -> None:
    with Engine(model, EngineOptions(max_batch=1, max_unread=1)) as engine:
        unread = engine.submit("x", ENDLESS)
        join(engine.submit("y", GenerationConfig(max_new_tokens=2)))
        unread.cancel()
        assert join(unread).finish_reason == "cancelled"


def test_a_deadline_frees_the_place_of_an_answer_that_nobody_reads(model: LanguageModel) -> None:
    with Engine(model, EngineOptions(max_batch=1, max_queue=0, max_unread=1)) as engine:
        unread = engine.submit("x", ENDLESS, deadline=0.5)
        for _ in range(6000):  # nothing else wakes the engine
            if engine.stats.finished:
                break
            time.sleep(0.01)
        assert (engine.stats.queued, engine.stats.finished) == (0, 1)
        assert join(unread).finish_reason == "cancelled"
        assert join(engine.submit("y", GenerationConfig(max_new_tokens=2))).usage.completion_tokens == 2


@pytest.mark.parametrize("deadline", [1e300, float("inf"), 10**400])
def test_a_deadline_beyond_what_a_clock_can_wait_for_is_none(model: LanguageModel, deadline: float) -> None:
    with Engine(model, EngineOptions(max_batch=1, max_unread=1)) as engine:
        unread = engine.submit("x", GenerationConfig(max_new_tokens=9, ignore_eos=True), deadline=deadline)
        assert join(engine.submit("y", GenerationConfig(max_new_tokens=2))).usage.completion_tokens == 2
        assert join(unread).usage.completion_tokens == 9


def test_an_answer_whose_memory_fails_while_it_gives_its_place_away_reaches_its_reader(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, aside = PrefixCache.keep, RunningBatch.put_aside

    def no_memory(*arguments: object, **named: object) -> None:
        raise MemoryError("no memory to keep it")

    def put_aside(batch: RunningBatch, request: Request) -> None:
        monkeypatch.setattr(PrefixCache, "keep", no_memory)
        try:
            aside(batch, request)
        finally:
            monkeypatch.setattr(PrefixCache, "keep", keep)

    monkeypatch.setattr(RunningBatch, "put_aside", put_aside)
    with Engine(model, EngineOptions(max_batch=1, max_unread=1)) as engine:
        unread = engine.submit("x", ENDLESS)
        assert join(engine.submit("y", GenerationConfig(max_new_tokens=1))).usage.completion_tokens == 1
        engine.close()
        with pytest.raises(MemoryError, match="no memory to keep it"):
            list(unread)


def test_an_event_loop_that_is_gone_does_not_stop_the_engine(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=5, ignore_eos=True)

    async def leave(engine: Engine) -> Generation:
        generation = engine.submit([5] * 900, config)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(generation.__anext__(), 0.0001)
        return generation

    with Engine(model) as engine:
        with held(engine):
            left = asyncio.run(leave(engine))
        assert join(engine.submit("y", config)).usage.completion_tokens == 5
        assert join(left).usage.completion_tokens == 5


@pytest.mark.parametrize("place", ["forward", "forward_rows", "add", "activate", "remove", "last_chunk"])
def test_what_fails_for_all_ends_them_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    model = scripted_model("Fine.")
    owner = {"forward": model.session, "forward_rows": model.session, "last_chunk": Answer}.get(place, KVBatch)
    works, failures = getattr(owner, place), [MemoryError("no memory for the batch")]

    def fail_once(*arguments: object, **named: object) -> object:
        result = works(*arguments, **named)  # so that it cannot be done once more
        if failures:
            raise failures.pop()
        return result

    monkeypatch.setattr(owner, place, fail_once)
    with Engine(model) as engine:
        answer = engine.submit("x")
        wait_for(lambda: answer.has_ended)
        with pytest.raises(OutOfMemoryError, match="no memory for the batch"):
            join(answer)
        assert join(engine.submit("x")).text == "Fine."
        assert engine.stats.active == 0


def test_a_short_prompt_does_not_wait_for_a_piece_of_a_long_one(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, began, stopped = model.session.forward, threading.Event(), []

    def wait_to_be_stopped(ids, cache, *, all_logits=False, stop=None):  # type: ignore[no-untyped-def]
        if stop is not None and len(ids) == 128 and not stopped:
            began.set()
            while not stop.is_pressed:
                time.sleep(0.001)
            stopped.append(len(ids))
            raise StoppedError
        return forward(ids, cache, all_logits=all_logits, stop=stop)

    monkeypatch.setattr(model.session, "forward", wait_to_be_stopped)
    config = GenerationConfig(max_new_tokens=4, ignore_eos=True)
    with Engine(model) as engine:
        long = engine.submit([7, 8, 9] * 300, config)
        assert began.wait()
        short = join(engine.submit("Hi", config))
        completion = join(long)
    assert stopped == [128]
    monkeypatch.undo()
    assert short.token_ids == model.generate("Hi", config).token_ids
    assert completion.token_ids == model.generate([7, 8, 9] * 300, config).token_ids


def test_cancelling_stops_the_piece_of_a_prompt(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, second = model.session.forward, threading.Event()

    def wait_to_be_stopped(ids, cache, *, all_logits=False, stop=None):  # type: ignore[no-untyped-def]
        if not cache.length:
            return forward(ids, cache, all_logits=all_logits, stop=stop)
        second.set()
        while not stop.is_pressed:
            time.sleep(0.001)
        raise StoppedError

    monkeypatch.setattr(model.session, "forward", wait_to_be_stopped)
    with Engine(model) as engine:
        generation = engine.submit([5, 6] * 150)
        assert second.wait()
        generation.cancel()
        completion = join(generation)
    assert completion.finish_reason == "cancelled"
    assert completion.timings.prefill_tokens == 128  # what was read of it


def test_texts_that_turn_otherwise_as_a_whole_are_left_to_stream() -> None:
    model = scripted_model("Fine.")
    scaling = {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 16.0}
    values = model.config.to_dict()
    half = model.config.head_dim // 2
    values["rope_scaling"] |= scaling | {"short_factor": [1.0] * half, "long_factor": [2.0] * half}
    model.session.config = edgelm.ModelConfig.from_dict(values)
    with Engine(model) as engine:
        assert join(engine.submit("x")).text == "Fine."
        with pytest.raises(edgelm.ContextLengthError, match=r"has 65 tokens; an engine computes up to 64 of"):
            engine.submit([5] * 65)


@pytest.mark.parametrize(
    "error", [StopIteration(), StopAsyncIteration(), SystemExit(3), asyncio.CancelledError(), MemoryError("mine")]
)
@pytest.mark.parametrize("config", [{}, {"num_beams": 2}])
def test_whatever_a_function_of_the_user_raises_reaches_its_reader_and_the_engine_goes_on(
    model: LanguageModel, error: BaseException, config: dict[str, Any]
) -> None:
    def fail(logits_V: object, token_ids: object) -> None:
        raise error

    ends = isinstance(error, (StopIteration, StopAsyncIteration))  # an iterator that raised it would just be over
    with Engine(model) as engine:
        with held(engine):
            beside = engine.submit("x", GenerationConfig(max_new_tokens=9, ignore_eos=True))
            answer = engine.submit("x", GenerationConfig(processors=[fail], max_new_tokens=2, **config))
        with pytest.raises(RuntimeError if ends else type(error)) as raised:
            list(answer)
        assert join(beside).usage.completion_tokens == 9
        if ends:
            assert str(raised.value) == f"What chooses the tokens raised {type(error).__name__}."
            assert raised.value.__cause__ is error
        assert join(engine.submit("x", GenerationConfig(max_new_tokens=2))).usage.completion_tokens == 2


def test_a_second_reader_of_an_answer_does_not_wait_for_ever(model: LanguageModel) -> None:
    async def both(answer: Generation) -> Chunk:
        readers = [asyncio.ensure_future(anext(answer)) for _ in range(2)]
        done, _ = await asyncio.wait(readers, timeout=60, return_when=asyncio.FIRST_EXCEPTION)
        with pytest.raises(edgelm.EdgeLMError, match=r"Another task waits for the next chunk .* let one task read it"):
            [reader.result() for reader in done]
        leave.set()
        return await readers[0]

    leave = threading.Event()

    def wait(logits_V: object, token_ids: object) -> None:
        assert leave.wait(60)

    with Engine(model) as engine:
        answer = engine.submit("x", GenerationConfig(processors=[wait], max_new_tokens=5))
        assert asyncio.run(both(answer)).token_ids
        list(answer)
        leave.clear()
        answer = engine.submit("x", GenerationConfig(processors=[wait], max_new_tokens=1))
        threads = [threading.Thread(target=list, args=(answer,), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        leave.set()
        for thread in threads:
            thread.join(60)
        assert [thread.is_alive() for thread in threads] == [False, False]

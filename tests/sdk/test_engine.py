import asyncio
import threading

import pytest

import edgelm
from edgelm import Engine, EngineOptions, GenerationConfig, LanguageModel
from edgelm.answer import join
from edgelm.testing import scripted_model, tiny_model_path

ENDLESS = GenerationConfig(ignore_eos=True)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return edgelm.load(tiny_model_path())


def test_a_request_gets_the_chunks_of_stream(model: LanguageModel) -> None:
    config = GenerationConfig(max_new_tokens=20, temperature=1.0, seed=3, logprobs=2)
    with Engine(model) as engine:
        got, expected = join(engine.submit("The sea", config)), model.generate("The sea", config)
    assert (got.text, got.token_ids, got.finish_reason) == (expected.text, expected.token_ids, expected.finish_reason)
    assert got.logprobs == expected.logprobs


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


def test_a_deadline_ends_an_answer_as_cancelled(model: LanguageModel) -> None:
    with Engine(model) as engine:
        completion = join(engine.submit("x", ENDLESS, deadline=0.0))
    assert completion.finish_reason == "cancelled"


def test_a_full_queue_refuses_at_once(model: LanguageModel) -> None:
    with Engine(model, EngineOptions(max_batch=1, max_queue=0)) as engine:
        engine.submit("x", ENDLESS)
        with pytest.raises(
            edgelm.QueueFullError, match=r"1 requests are at work or wait: .* lets 0 wait \(max_queue\)"
        ):
            engine.submit("y")


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


def test_an_error_reaches_the_reader_of_its_answer_alone() -> None:
    model = scripted_model("Fine.")
    with Engine(model) as engine:
        bad = engine.submit("x", GenerationConfig(logit_bias={9999: 1.0}))
        good = engine.submit("x")
        with pytest.raises(edgelm.ConfigError, match="logit_bias names token 9999"):
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


@pytest.mark.parametrize(("name", "value"), [("max_batch", 0), ("max_batch", 1.5), ("max_queue", -1)])
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(edgelm.ConfigError, match=f"{name} is {value!r}; it must be a whole number of"):
        EngineOptions(**{name: value})  # type: ignore[arg-type]

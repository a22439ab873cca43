"""Answers, without a server: several of one request, in an engine that others use too."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from held_engine import held

from edgelm import Engine, EngineOptions, GenerationConfig
from edgelm.decoding.answer import join
from edgelm.errors import QueueFullError
from edgelm.language_model import LanguageModel
from edgelm.server.answers import Answers, Job
from edgelm.server.delivery import deliver
from edgelm.server.endpoint import Call
from edgelm.server.options import ServerOptions
from edgelm.server.turns import Turns

ONE = GenerationConfig(max_new_tokens=1)


def taken(engine: Engine, when: tuple[int, ...]) -> tuple[Any, list[int]]:
    """Return an engine whose places others take whenever one of these calls comes, and the calls that came."""
    calls: list[int] = []

    def submit(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] in when:
            raise QueueFullError("Full.")
        return engine.submit(*arguments, **named)

    return SimpleNamespace(submit=submit), calls


def answers_of(engine: Any, seconds: float) -> Answers:
    served: Any = SimpleNamespace(turns=Turns(engine, 2), max_batch=1, name="tiny")
    metrics: Any = SimpleNamespace(count_chunk=lambda *_: None)
    jobs = [Job(prompt_ids=[5, 6, 7], config=GenerationConfig(max_new_tokens=2)) for _ in range(2)]
    return Answers(served, jobs, "caller", time.monotonic() + seconds, metrics)


def test_an_answer_whose_place_others_took_waits_for_the_next(tiny: LanguageModel) -> None:
    with Engine(tiny, EngineOptions(max_batch=1, max_queue=0)) as engine:
        full, calls = taken(engine, when=(1, 2))
        answers = answers_of(full, seconds=60)
        answers.start()
        first, second = asyncio.run(answers.completions())
    assert first.text == second.text
    assert len(calls) == 4


def test_the_others_of_a_request_wait_where_a_full_queue_has_a_place_for_its_first(tiny: LanguageModel) -> None:
    with Engine(tiny, EngineOptions(max_batch=2, max_queue=3)) as engine:
        answers = answers_of(engine, seconds=60)
        answers.served.max_batch = 2
        with held(engine):
            others = [answers.served.turns.submit("other", [1], ONE, deadline=60) for _ in range(2)]
            answers.start()
            assert len(answers._running) == 1
        first, second = asyncio.run(answers.completions())
        assert [join(other).finish_reason for other in others] == ["length", "length"]
    assert first.text == second.text


def test_a_place_is_waited_for_no_longer_than_a_request_may_take(tiny: LanguageModel) -> None:
    with Engine(tiny, EngineOptions(max_batch=1, max_queue=0)) as engine:
        full, _ = taken(engine, when=tuple(range(1, 1000)))
        answers = answers_of(full, seconds=0.2)
        answers.start()
        with pytest.raises(QueueFullError):
            asyncio.run(answers.completions())


def test_the_event_loop_goes_on_while_a_whole_answer_is_written() -> None:
    begun, went_on = threading.Event(), threading.Event()

    def whole(_completions: object) -> dict[str, bool]:
        begun.set()
        return {"went on": went_on.wait(5)}

    async def acquire(_name: object) -> Any:
        served: Any = contextlib.ExitStack()
        served.max_batch = 1
        return served

    pool: Any = SimpleNamespace(resolve=str, acquire=acquire)

    async def answer() -> bytes:
        request: Any = SimpleNamespace(receive=asyncio.Event().wait, client=None)  # a client that stays
        nothing: Any = None
        call = Call(request=request, body={}, options=ServerOptions(), pool=pool, metrics=nothing)
        writer: Any = SimpleNamespace(whole=whole)
        delivering = asyncio.create_task(deliver(call, lambda _served: ([], writer), streaming=False))
        while not begun.is_set() and not delivering.done():
            await asyncio.sleep(0.001)
        went_on.set()
        return bytes((await delivering).body)

    assert asyncio.run(answer()) == b'{"went on":true}'

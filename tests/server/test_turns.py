"""Turns, without a server: callers who ask for much, and callers who ask for one answer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from held_engine import held
from numpy.typing import NDArray
from starlette.datastructures import Headers
from starlette.requests import Request

from edgelm import Engine, EngineOptions, GenerationConfig
from edgelm.batching.generation import Generation
from edgelm.decoding.answer import join
from edgelm.errors import QueueFullError
from edgelm.language_model import LanguageModel
from edgelm.server.endpoint import Call
from edgelm.server.guard import check_key
from edgelm.server.options import ServerOptions
from edgelm.server.thread_shares import ThreadShares
from edgelm.server.turns import Turns

SHORT = GenerationConfig(max_new_tokens=1)
MINUTE = 60.0


class Noting:
    """A sampler that notes whose answer is begun, and then does something more."""

    def __init__(self, caller: str, begun: list[str], then: Callable[[], object] = lambda: None) -> None:
        self._caller, self._begun, self._then = caller, begun, then

    def __call__(self, logits_V: NDArray[np.float32], _: np.random.Generator) -> int:
        self._begun.append(self._caller)
        self._then()
        return int(logits_V.argmax())


def noting(*arguments: Any) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=1, sampler=Noting(*arguments))


def test_who_asks_for_one_answer_does_not_wait_for_all_of_who_asks_for_many(tiny: LanguageModel) -> None:
    begun: list[str] = []
    with Engine(tiny, EngineOptions(max_batch=1)) as engine:
        turns = Turns(engine, 64)
        with held(engine):
            callers = ["many"] * 5 + ["one", "two", "one"]
            answers = [turns.submit(who, [5, 6, 7], noting(who, begun), deadline=MINUTE) for who in callers]
        for answer in answers:
            join(answer)
    assert begun == ["many", "many", "one", "two", "many", "one", "many", "many"]


def test_who_asks_for_many_does_not_wait_until_nobody_else_asks(tiny: LanguageModel) -> None:
    begun: list[str] = []
    with Engine(tiny, EngineOptions(max_batch=1)) as engine:
        turns = Turns(engine, 64)

        def ask_again() -> None:
            if begun.count("one") < 20:
                turns.submit("one", [5, 6, 7], noting("one", begun, ask_again), deadline=MINUTE)

        with held(engine):
            answers = [turns.submit("many", [5, 6, 7], noting("many", begun), deadline=MINUTE) for _ in range(5)]
            ask_again()
        for answer in answers:
            join(answer)
        engine.close(drain=True)
    assert begun[:10].count("many") == 5


def test_a_full_queue_has_a_place_for_who_has_none_in_it(tiny: LanguageModel) -> None:
    with Engine(tiny, EngineOptions(max_batch=1, max_queue=6)) as engine:
        turns = Turns(engine, 3)
        with held(engine):
            for _ in range(3):
                turns.submit("many", [5, 6, 7], SHORT, deadline=MINUTE)
            with pytest.raises(QueueFullError, match="3 answers at work or waiting, 3 of them this caller's"):
                turns.submit("many", [5, 6, 7], SHORT, deadline=MINUTE)
            turns.submit("one", [5, 6, 7], SHORT, deadline=MINUTE)
            with pytest.raises(QueueFullError):
                turns.submit("one", [5, 6, 7], SHORT, deadline=MINUTE)


def test_a_schema_that_takes_long_to_compile_keeps_its_callers_place_and_no_other_caller_waiting() -> None:
    compiling, is_compiled = threading.Event(), threading.Event()

    class Compiling:
        """An engine that compiles what comes first until it is told that it is compiled."""

        def submit(self, *_: object, **__: object) -> Generation:
            if not compiling.is_set():
                compiling.set()
                is_compiled.wait()
            return Generation(lambda: None, lambda: None)

    engine: Any = Compiling()
    turns = Turns(engine, 1)

    def submit(caller: str) -> Generation:
        return turns.submit(caller, [5], SHORT, deadline=MINUTE)

    with ThreadPoolExecutor() as threads:
        try:
            answers = [threads.submit(submit, "many")]
            compiling.wait()
            answers.append(threads.submit(submit, "one"))
            assert answers[1].result(timeout=5) is not None
            with pytest.raises(QueueFullError, match="2 answers at work or waiting, 1 of them this caller's"):
                submit("many")
        finally:
            is_compiled.set()
        assert answers[0].result() is not None
    with pytest.raises(QueueFullError, match="2 answers at work or waiting, 1 of them this caller's"):
        submit("many")


@pytest.mark.parametrize("is_pinned", [False, True])
def test_no_caller_has_all_of_the_threads(is_pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_pinned:  # as Python 3.13 counts for its threads
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        monkeypatch.setattr(os, "process_cpu_count", lambda: 1, raising=False)
    shares, is_over, ended = ThreadShares(), threading.Event(), list[int]()

    def work(number: int) -> None:
        is_over.wait()
        ended.append(number)

    async def both() -> str:
        if is_pinned:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(5))
        many = [asyncio.create_task(shares.run("many", work, number)) for number in range(40)]
        await asyncio.sleep(0)  # all of them have begun
        try:
            async with asyncio.timeout(5):
                return await shares.run("one", lambda: "done")
        finally:
            is_over.set()
            await asyncio.gather(*many)

    assert asyncio.run(both()) == "done"
    assert sorted(ended) == [*range(40)]
    assert len(shares._of_caller) == 0  # nothing is kept of who asked


def caller(options: ServerOptions, **headers: str) -> str:
    given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    scope = {"type": "http", "client": ("10.0.0.1", 80), "headers": given.raw}
    key, nothing = check_key(given, options), cast(Any, None)
    return Call(request=Request(scope), body={}, options=options, pool=nothing, metrics=nothing, key=key).caller


@pytest.mark.parametrize("header", ["authorization", "x_api_key"])
@pytest.mark.parametrize("keys", [(), ("key-of-one", "key-of-two")])
def test_two_keys_behind_one_proxy_are_two_callers(header: str, keys: tuple[str, ...]) -> None:
    one, again, two = (
        caller(ServerOptions(api_keys=keys), **{header: key if header == "x_api_key" else f"Bearer {key}"})
        for key in ("key-of-one", "key-of-one", "key-of-two")
    )
    assert one == again != two


def test_who_has_one_key_is_one_caller_whatever_else_the_headers_say() -> None:
    options = ServerOptions(api_keys=("key-of-one", "key-of-two"))
    given = [
        {"authorization": "Bearer key-of-one"},
        {"authorization": "bearer  key-of-one "},
        {"x_api_key": "key-of-one"},
        {"x_api_key": "key-of-one", "authorization": "Bearer whatever"},
        {"x_api_key": "whatever", "authorization": "Bearer key-of-one"},
    ]
    assert len({caller(options, **headers) for headers in given}) == 1

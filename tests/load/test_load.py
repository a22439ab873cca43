"""Many clients at once, some of which leave: everybody gets what he would get alone, and nothing is left behind.

The long form, for minutes and a million tokens, is tests/load/soak.py.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from edgelm_server import CHAT, SLOW, TINY, EdgelmServer
from waiting import wait_for

sys.path.insert(0, str(Path(__file__).parent))
from soak import POOL, Ask, Figures, Sample, asks, growth, leaks, soak, stream

import edgelm
from edgelm import Engine, LanguageModel
from edgelm.decoding.answer import join

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at a process as Linux shows it")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return edgelm.load(TINY)


@pytest.fixture(scope="module")
def asked(model: LanguageModel) -> list[Ask]:
    return asks(model, 30, longest=20)


@pytest.fixture(scope="module")
def slow_server() -> Iterator[EdgelmServer]:
    with EdgelmServer((TINY, "--batch", "4", "--quiet"), prelude=SLOW) as server:
        yield server


def test_16_clients_on_4_slots_get_what_each_gets_alone_and_leave_nothing(asked: list[Ask]) -> None:
    with EdgelmServer((TINY, "--batch", "4", "--quiet")) as server:
        figures = soak(server, asked, clients=16, seconds=0, tokens=640, every=0.1)
        code = server.stop()

    assert figures.differences == []
    assert figures.answers >= 32  # of at most 20 tokens each
    assert leaks(figures) == []
    assert code == 0, server.log


def test_growth_is_the_slope_of_the_memory_behind_the_warm_up() -> None:
    samples = [
        Sample(seconds=float(second), memory=10**8 + 50_000 * second, threads=1, descriptors=1, tokens=0)
        for second in range(400)
    ]
    assert growth(samples[:300]) is None  # too short to be judged
    samples[:10] = [Sample(seconds=float(i), memory=0, threads=1, descriptors=1, tokens=0) for i in range(10)]

    assert growth(samples) == pytest.approx(3.0)  # 50 kB a second


def test_threads_beyond_the_servers_pool_and_open_files_are_leaks() -> None:
    def watched(threads: int, descriptors: int) -> list[str]:
        zero = Sample(seconds=0.0, memory=0, threads=5, descriptors=20, tokens=0)
        after = dataclasses.replace(zero, threads=threads, descriptors=descriptors)
        return leaks(Figures(before=zero, after=after))

    assert watched(5 + POOL, 20) == []
    assert watched(6 + POOL, 20) == [f"5 threads before, {6 + POOL} after, of a pool of {POOL}"]
    assert watched(5, 21) == ["20 open files before, 21 after"]


def test_200_clients_that_leave_at_random_moments_leave_nothing(slow_server: EdgelmServer, asked: list[Ask]) -> None:
    server = slow_server
    stream(server, asked[0])
    process = Path(f"/proc/{server.pid}")
    descriptors = len(list((process / "fd").iterdir()))
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 900, "logit_bias": {"65": 100}}

    def leave(number: int) -> None:
        dice = random.Random(number)
        request = server.post_bytes(CHAT, body | {"stream": number % 3 > 0})
        # Some leave in the middle of what they say, some while they wait, some while they read.
        connection = server.send(request[: dice.randrange(1, len(request))] if number % 5 == 0 else request)
        time.sleep(dice.uniform(0, 0.15))
        connection.close()

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(leave, range(200)))

    wait_for(lambda: len(list((process / "fd").iterdir())) <= descriptors, 60)
    wait_for(lambda: server.metric("edgelm_requests_running") <= 1, 60)
    assert server.metric('edgelm_model_users{model="tiny-random"}') == 0
    assert len(list((process / "task").iterdir())) < 32
    for ask in asked[:5]:
        assert stream(server, ask) == (200, ask.text, ask.finish_reason, ask.tokens)


def test_32_threads_on_one_model_get_what_each_gets_alone(model: LanguageModel) -> None:
    configs = [
        model.generation_config.replace(max_new_tokens=10, ignore_eos=True, temperature=0.5 * (i % 3), seed=i)
        for i in range(32)
    ]
    prompts = [f"Number {i}: " + "the sea " * (i % 7 * 9) for i in range(32)]
    fresh = edgelm.load(TINY)
    alone = [fresh.generate(prompt, config).token_ids for prompt, config in zip(prompts, configs, strict=True)]
    got: dict[int, list[tuple[int, ...]]] = {}
    begin = threading.Barrier(32)

    def work(i: int, engine: Engine) -> None:
        begin.wait(60)
        got[i] = [
            (join(engine.submit(prompts[i], configs[i])) if (i + again) % 2 else model.generate(prompts[i], configs[i]))
            .token_ids
            for again in range(2)
        ]  # fmt: skip

    with Engine(model) as engine:
        threads = [threading.Thread(target=work, args=(i, engine)) for i in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert [got[i] for i in range(32)] == [[ids, ids] for ids in alone]

import sys
import threading
from collections.abc import Generator, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from edgelm import Engine, GenerationConfig, LanguageModel
from edgelm.runtime.switch_interval import SHORT_SWITCH_INTERVAL, SwitchInterval

SHORT = pytest.approx(1e-4)
USUAL = pytest.approx(5e-3)


@pytest.fixture(autouse=True)
def usual_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-3)
    yield
    sys.setswitchinterval(before)


class Seen:
    """A logits processor that changes nothing, and sees the interval of each step."""

    def __init__(self) -> None:
        self.intervals: list[float] = []

    def __call__(self, logits_V: NDArray[np.float32], token_ids: list[int]) -> NDArray[np.float32]:
        self.intervals.append(sys.getswitchinterval())
        return logits_V


def config(seen: Seen) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=5, ignore_eos=True, processors=(seen,))


def test_a_stream_computes_with_a_short_interval_and_its_consumer_has_the_usual_one(model: LanguageModel) -> None:
    seen = Seen()
    between = [sys.getswitchinterval() for _ in model.stream("The sea", config(seen))]
    assert seen.intervals == [SHORT] * 5
    assert between
    assert between == [USUAL] * len(between)


def test_a_stream_that_is_left_early_has_put_the_interval_back(model: LanguageModel) -> None:
    chunks = model.stream("The sea", config(Seen()))
    next(chunks)
    assert sys.getswitchinterval() == USUAL


def test_an_engine_computes_with_a_short_interval_and_waits_with_the_usual_one(model: LanguageModel) -> None:
    seen = Seen()
    with Engine(model) as engine:
        list(engine.submit("The sea", config(seen)))
    assert seen.intervals == [SHORT] * 5
    assert sys.getswitchinterval() == USUAL


def test_an_error_inside_puts_the_interval_back(model: LanguageModel) -> None:
    def fail(logits_V: NDArray[np.float32], token_ids: list[int]) -> NDArray[np.float32]:
        raise RuntimeError("from a processor")

    with pytest.raises(RuntimeError, match="from a processor"):
        model.generate("The sea", GenerationConfig(processors=(fail,)))
    assert sys.getswitchinterval() == USUAL


def test_the_last_of_several_threads_puts_the_interval_back() -> None:
    inside, go = threading.Event(), threading.Event()

    def stay() -> None:
        with SHORT_SWITCH_INTERVAL:
            inside.set()
            go.wait()

    other = threading.Thread(target=stay)
    other.start()
    inside.wait()
    with SHORT_SWITCH_INTERVAL:
        pass
    assert sys.getswitchinterval() == SHORT
    go.set()
    other.join()
    assert sys.getswitchinterval() == USUAL


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_thread_that_has_ended_inside_keeps_no_interval(is_inside: bool) -> None:
    interval = SwitchInterval(1e-4)

    def with_a_dead_one() -> None:
        dead = threading.Thread(target=interval.__enter__)
        dead.start()
        dead.join()
        assert sys.getswitchinterval() == SHORT

    if not is_inside:
        with_a_dead_one()
    with interval:
        if is_inside:
            with_a_dead_one()
        assert sys.getswitchinterval() == SHORT
    assert sys.getswitchinterval() == USUAL


def test_what_a_program_sets_meanwhile_stays() -> None:
    with SwitchInterval(1e-4):
        sys.setswitchinterval(2e-3)
    assert sys.getswitchinterval() == pytest.approx(2e-3)


def test_a_shorter_interval_than_ours_stays() -> None:
    sys.setswitchinterval(1e-5)
    with SwitchInterval(1e-4):
        assert sys.getswitchinterval() == pytest.approx(1e-5)
    assert sys.getswitchinterval() == pytest.approx(1e-5)


def test_closing_reaches_the_generator_that_is_read() -> None:
    closed = []

    def numbers() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    items = SwitchInterval(1e-4).during(numbers())
    next(items)
    items.close()
    assert closed == [True]

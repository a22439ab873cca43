"""What Ctrl-C does: a step that stops in order, a block that is broken off once, and nothing between them.

In a program without such blocks it is a KeyboardInterrupt anywhere.
"""

import itertools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from model_features import LINEAR, config_with
from waiting import wait_for

import edgelm
from edgelm import Chunk, Constraint, Engine, Generation, GenerationConfig
from edgelm.batching.worker import Worker
from edgelm.cli.interrupts import Interrupts
from edgelm.decoding.answer import Answer
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.snapshots import Snapshots
from edgelm.runtime.switch_interval import SwitchInterval
from edgelm.shared_use import SharedUse
from edgelm.structure.constraint_matcher import _Vocabulary
from edgelm.testing import scripted_model, tiny_model_path


def interrupted(function: Callable[..., Any], action: Callable[[], object]) -> Iterator[int]:
    """Do something, broken off behind the first call in C that it makes in a function; then the second, and so on.

    There Python looks for signals. Behind `with lock` it should not, and does in 3.14 alone (github.com/python/cpython,
    issue 148874): the lock stays locked, also those of the standard library, and nobody but Python can help it.
    """
    for place in itertools.count(1):
        calls = itertools.count(1)

        def profile(frame: FrameType, event: str, what: Any, calls: Iterator[int] = calls, place: int = place) -> None:
            if frame.f_code is not function.__code__ or event != "c_return" or what.__name__ == "__enter__":
                return
            if next(calls) == place:
                raise KeyboardInterrupt

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            action()
        except KeyboardInterrupt:
            sys.setprofile(before)
            yield place
        else:
            return  # there are no more
        finally:
            sys.setprofile(before)


def test_an_interrupt_breaks_a_block_off_once_and_does_nothing_outside_of_one() -> None:
    previous = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with interrupts.breaking():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # while what was broken off is put away
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is previous


def test_the_first_interrupt_stops_a_step_in_order_and_the_second_breaks_it_off() -> None:
    with Interrupts() as interrupts:
        with interrupts.stopping():
            pass
        signal.raise_signal(signal.SIGINT)  # between two steps
        with interrupts.stopping() as cancel:
            assert not cancel.is_set()
            signal.raise_signal(signal.SIGINT)
            assert cancel.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with interrupts.stopping() as cancel:
            assert not cancel.is_set()
        with interrupts.breaking(), pytest.raises(KeyboardInterrupt):  # at once: there is no step any more
            signal.raise_signal(signal.SIGINT)


def test_a_cache_has_its_turn_again_wherever_an_answer_is_broken_off() -> None:
    model = edgelm.load(tiny_model_path())
    config, cache = GenerationConfig(max_new_tokens=3, ignore_eos=True), model.new_cache()
    for _ in interrupted(Answer._in_turn, lambda: [*model.stream([5, 6, 7], config, cache=cache)]):
        assert not cache.turn.locked()
    assert (
        edgelm.join(model.stream([5, 6, 7], config, cache=cache)).token_ids
        == model.generate([5, 6, 7], config).token_ids
    )


@pytest.mark.parametrize("function", [SharedUse.__enter__, SharedUse.__exit__])
def test_a_thread_that_is_broken_off_on_its_way_in_or_out_is_not_waited_for(function: Callable[..., Any]) -> None:
    use, ends = SharedUse(), []

    def enter() -> None:
        with use:
            pass

    def end() -> None:
        for place in interrupted(function, enter):
            with use.alone():
                ends.append(place)
        use.end()
        ends.append(0)

    thread = threading.Thread(target=end, daemon=True)  # which would wait for itself
    thread.start()
    thread.join(60)
    assert ends[-1:] == [0]
    assert len(ends) > 1


@pytest.mark.parametrize("function", [SwitchInterval.__enter__, SwitchInterval.__exit__])
def test_an_interval_that_was_not_put_back_is_with_the_next_block(function: Callable[..., Any]) -> None:
    before, interval = sys.getswitchinterval(), SwitchInterval(1e-4)

    def enter() -> None:
        with interval:
            pass

    for _ in interrupted(function, enter):
        enter()
        assert sys.getswitchinterval() == before


def test_who_is_broken_off_when_others_have_left_lets_them_in_again() -> None:
    use = SharedUse()

    def change() -> None:
        with use.alone():
            pass

    closed = [use._closed for _ in interrupted(threading.Condition.__exit__, change)]
    assert closed
    assert not any(closed)


def test_an_interrupt_of_who_waits_for_an_engines_answer_cancels_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `join(engine.submit(…))` nobody else has the answer, which would be made until its end."""

    def interrupt(seconds: float | None = None) -> None:
        assert seconds is not None  # on Windows Ctrl-C is heard when a wait is over
        raise KeyboardInterrupt

    woken: list[bool] = []
    answer = Generation(lambda: woken.append(answer.cancelled), lambda: None)
    monkeypatch.setattr(answer._arrived, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        edgelm.join(answer)
    assert woken == [True]


def test_an_answer_that_was_interrupted_as_a_chunk_was_taken_out_is_cancelled() -> None:
    def read() -> None:
        made[0] = Generation(lambda: None, lambda: None)
        made[0].put(Chunk(text="a", token_ids=(1,)))
        next(made[0])

    made: dict[int, Generation] = {}
    cancelled = [made[0].cancelled for _ in interrupted(Generation._read, read)]
    assert cancelled
    assert all(cancelled)


@pytest.mark.parametrize("function", [Snapshots.forget_after, KVCache._cut])
def test_a_cache_that_was_interrupted_on_its_way_back_to_a_snapshot_is_empty(function: Callable[..., Any]) -> None:
    config = config_with(LINEAR | {"num_hidden_layers": 2, "layer_types": ("full_attention", "linear_attention")})
    states = []

    def go_back() -> None:
        caches.append(cache := KVCache(config))
        cache.reserve(4)
        for ids in ((5, 6), (7, 8)):
            for state in cache._states:
                state += 1
            cache.extend(ids)
            cache.take_snapshot()
        cache.truncate(3)

    caches: list[KVCache] = []
    for _ in interrupted(function, go_back):
        states.append((caches[-1].length, {float(state.max()) for state in caches[-1]._states}))
    assert states
    assert all(found == (0, {0.0}) for found in states)


@pytest.mark.parametrize("function", [Worker.take, threading.Condition.notify])
def test_an_engine_answers_the_next_request_wherever_one_was_interrupted_as_it_came(
    function: Callable[..., Any],
) -> None:
    with Engine(scripted_model("Fine.")) as engine:
        answered = []
        for place in interrupted(function, lambda: engine.submit("x")):
            wait_for(lambda: not engine.stats.active + engine.stats.queued)  # that one is cancelled, or over
            answer = engine.submit("y")
            reader = threading.Thread(target=list, args=(answer,), daemon=True)
            reader.start()
            reader.join(20)
            assert answer.has_ended, place
            answered.append(place)
        assert answered


def test_an_engine_that_is_interrupted_as_it_is_made_leaves_no_thread() -> None:
    model, before = scripted_model("Fine."), set(threading.enumerate())
    assert list(interrupted(threading.Thread.start, lambda: Engine(model).close()))
    for thread in {*threading.enumerate()} - before:
        if thread.ident is not None:  # else Python never started it
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("call", [1, 2])
def test_what_ends_a_constrained_answer_inside_of_its_library_is_no_error_of_the_constraint(
    ending: BaseException, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls, encode = edgelm.load(tiny_model_path()), itertools.count(1), _Vocabulary.__call__
    config = GenerationConfig(constraint=Constraint.regex('[{]"name": [0-9], "age": [0-9][}]'))

    def broken_off(vocabulary: _Vocabulary, text: str) -> list[int]:
        if next(calls) == call:
            raise ending
        return encode(vocabulary, text)

    monkeypatch.setattr(_Vocabulary, "__call__", broken_off)
    with pytest.raises(type(ending)) as caught:
        model.generate("x", config)
    assert caught.value.args == ending.args
    assert model.generate("x", config).finish_reason == "stop"

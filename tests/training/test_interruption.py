"""Interruption: what a signal says to a run, and when."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import pytest

from edgelm_training.runs.interruption import Interruption


class LongCall:
    """A call that Python cannot look into, as PyTorch's are: handlers wait for its end."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def end(self) -> None:
        os.write(self._write, b"x")

    def __call__(self) -> None:
        import ctypes

        class PollFD(ctypes.Structure):
            _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))

        ended = ctypes.CDLL(None).poll(ctypes.byref(PollFD(self._read, 1, 0)), 1, 20_000)  # 1: POLLIN
        os.close(self._read)
        os.close(self._write)
        assert ended == 1  # whoever tells nobody is waited for in vain


@pytest.mark.skipif(sys.platform == "win32", reason="there is no poll")
def test_a_signal_is_told_while_one_long_call_computes() -> None:
    call, notes = LongCall(), list[str]()

    def note(text: str) -> None:
        notes.append(text)
        call.end()

    with Interruption(note) as interruption:
        # To a thread, so that the call goes on.
        thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
        threading.Timer(0.1, thread.start).start()
        call()
    assert interruption.signal == signal.SIGINT
    assert notes == ["Ending after this step, with a checkpoint. Ctrl-C again ends without one."]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no poll")
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_during_one_long_call_are_two(second: signal.Signals) -> None:
    call, notes = LongCall(), list[str]()

    def send() -> None:
        for number in (signal.SIGINT, second):
            signal.pthread_kill(threading.get_ident(), number)
        while len(interruption._arrived) < 2:
            time.sleep(0.001)
        call.end()

    expected = pytest.raises(KeyboardInterrupt) if second == signal.SIGINT else contextlib.nullcontext()
    with Interruption(notes.append) as interruption:
        threading.Timer(0.1, send).start()
        with expected:
            call()
    assert interruption.signal == (None if second == signal.SIGINT else second)
    assert len(notes) == 1


def test_a_second_ctrl_c_interrupts_and_what_was_there_before_comes_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    notes: list[str] = []
    with Interruption(notes.append) as interruption:
        for _ in range(2):  # who is asked twice to end still saves first
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interruption.signal == signal.SIGTERM
    assert len(notes) == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_note_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[object] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    def note(_: str) -> None:
        raise BrokenPipeError

    with Interruption(note) as interruption:
        signal.raise_signal(signal.SIGTERM)
    assert (interruption.signal, errors) == (signal.SIGTERM, [])


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there is no other signal to send")
def test_another_signal_is_the_programs_own() -> None:
    notes: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with Interruption(notes.append) as interruption:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (interruption.signal, notes) == (None, [])


def test_beside_the_main_thread_signals_are_the_programs_own() -> None:
    def enter() -> None:
        with Interruption(lambda _: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_where_no_thread_can_start_signals_stay_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start"), Interruption(lambda _: None):
        pass
    assert signal.set_wakeup_fd(-1) == -1

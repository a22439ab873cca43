"""What ends a command from outside: it ends as by an error, and puts away what it has begun."""

import signal
import subprocess
import sys
import threading

import pytest

from edgelm.cli.termination import unwinding

ENDING = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("name", ENDING)
def test_sigterm_and_a_terminal_that_closes_end_a_block_as_an_error_does(name: str) -> None:
    number = signal.Signals[name]
    previous = signal.getsignal(number)
    with pytest.raises(SystemExit, match=str(128 + number)), unwinding():
        signal.raise_signal(number)
    assert signal.getsignal(number) is previous


@pytest.mark.skipif("SIGHUP" not in ENDING, reason="the system has no such signal")
def test_what_nohup_has_ignored_stays_so() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with unwinding():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


TWICE = """
import signal
from edgelm.cli.termination import unwinding

with unwinding():
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        print("putting away", flush=True)
        signal.raise_signal(signal.SIGTERM)
        print("more of it", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no process there ends by a signal")
def test_a_second_sigterm_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "putting away\n")


def test_in_another_thread_signals_are_left_alone() -> None:
    seen = []

    def run() -> None:
        with unwinding():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]

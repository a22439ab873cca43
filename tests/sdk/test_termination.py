"""What SIGTERM does to a command: it ends as by an error, and puts away what it has begun."""

import signal
import subprocess
import sys
import threading

import pytest

from edgelm.cli.termination import unwinding


def test_sigterm_ends_a_block_as_an_error_does() -> None:
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"), unwinding():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is previous


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

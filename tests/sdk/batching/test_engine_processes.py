"""Engines and models in programs that end, or fork, while they compute."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One process imports all that programs need but ONNX Runtime, whose threads no fork has: each goes on from there.
BEGUN = """
import os, sys
import edgelm.language_model, edgelm.batching.engine, edgelm.testing
begun = os.getpid()
for line in sys.stdin:
    if not os.fork():
        # It passes for that process, since what was made there ends with it; its own forks do not.
        os.getpid = lambda begun=begun, own=os.getpid(), get=os.getpid: begun if get() == own else get()
        exec(eval(line))
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
Run = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a program to its end, and give its exit code and what it said of errors."""
    if not hasattr(os, "fork"):

        def alone(program: str) -> tuple[int, str]:
            ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
            return ended.returncode, ended.stderr

        yield alone
        return
    errors: Path = tmp_path_factory.mktemp("programs") / "stderr"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BEGUN]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        errors.open("a+") as stderr,
        subprocess.Popen(command, stderr=stderr, start_new_session=True, **pipes) as begun,
    ):
        assert begun.stdin is not None
        assert begun.stdout is not None
        program_in, code_out = begun.stdin, begun.stdout

        def forked(program: str) -> tuple[int, str]:
            stderr.truncate(0)
            print(repr(program), file=program_in, flush=True)
            code = code_out.readline()
            assert code, errors.read_text()
            return int(code), errors.read_text()

        yield forked
        os.killpg(begun.pid, signal.SIGKILL)  # and a program that hangs


FORKS = """
import asyncio, os, sys, threading, edgelm, edgelm.testing
from edgelm.decoding.answer import join
model = edgelm.load(edgelm.testing.tiny_model_path())
engine = edgelm.Engine(model)
config = edgelm.GenerationConfig(max_new_tokens=3)
join(engine.submit("x", config))
inside, leave = threading.Event(), threading.Event()
def wait(logits_V, random):
    inside.set()
    leave.wait()
    return int(logits_V.argmax())
begun = engine.submit("x", config.replace(sampler=wait))
inside.wait()
child = os.fork()
if child:
    _, status = os.waitpid(child, 0)
    leave.set()
    join(begun)
    join(engine.submit("x", config))
    sys.exit(os.waitstatus_to_exitcode(status))
async def read():
    async for chunk in begun:
        pass
attempts = (
    (lambda: model.generate("x", config), "cannot run it"),
    (lambda: engine.submit("x"), "has no worker"),
    (lambda: edgelm.Engine(model), "cannot run it"),
    (lambda: next(begun), "can neither read nor cancel it"),
    (lambda: asyncio.run(read()), "can neither read nor cancel it"),
    (lambda: begun.cancel(), "can neither read nor cancel it"),
)
for attempt, word in attempts:
    try:
        attempt()
    except edgelm.EdgeLMError as error:
        assert word in str(error), error
    else:
        sys.exit("no error")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_fork_says_at_once_that_it_cannot_use_the_model(run: Run) -> None:
    assert run(FORKS) == (0, "")


FORKS_IN_A_STEP = """
import os, sys
import edgelm, edgelm.testing
model = edgelm.load(edgelm.testing.tiny_model_path())
with model.session._use:  # as a thread that is computing
    child = os.fork()
if not child:
    model.session._use._inside = {1}  # the thread is not there, and so never leaves
    try:
        model.unload_adapter("any")
    except edgelm.ProviderError as error:
        sys.exit("cannot run it" not in str(error))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_fork_takes_no_adapter_and_ends_though_a_thread_was_computing_when_it_began(run: Run) -> None:
    assert run(FORKS_IN_A_STEP) == (0, "")


FORKS_BESIDE_SLEEPING_THREADS = """
import os, sys, time
import edgelm, edgelm.testing
load = lambda: edgelm.load(edgelm.testing.tiny_model_path(), edgelm.SessionOptions(threads=2))
model = load()
time.sleep(0.5)  # ONNX Runtime's thread no longer looks for work
for drops_it in (False, True):
    child = os.fork()
    if not child:
        if drops_it:
            del model
            load().generate("x", edgelm.GenerationConfig(max_new_tokens=3))
        sys.exit(0)
    if status := os.waitpid(child, 0)[1]:
        sys.exit(f"drops it: {drops_it}, {status}")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_fork_ends_though_it_has_none_of_the_threads_of_its_model(run: Run) -> None:
    assert run(FORKS_BESIDE_SLEEPING_THREADS) == (0, "")


def test_an_engine_that_was_not_closed_does_not_keep_the_program_from_ending(run: Run) -> None:
    program = (
        "import edgelm, edgelm.testing; engine = edgelm.Engine(edgelm.load(edgelm.testing.tiny_model_path())); "
        "next(engine.submit('x', edgelm.GenerationConfig(ignore_eos=True)))"
    )
    assert run(program) == (0, "")


UNREAD = """
import edgelm, edgelm.testing
def main(): ...
model = edgelm.load(edgelm.testing.tiny_model_path())
chunks = model.stream("The sea", edgelm.GenerationConfig(ignore_eos=True))
next(chunks)
"""


def test_a_program_that_ends_beside_an_unread_answer_says_nothing(run: Run) -> None:
    assert run(UNREAD) == (0, "")


DAEMON = """
import threading
import edgelm, edgelm.testing
model = edgelm.load(edgelm.testing.tiny_model_path(), edgelm.SessionOptions(threads=2))
config = edgelm.GenerationConfig(ignore_eos=True)
begun = threading.Event()
def stream():
    while True:
        for chunk in model.stream("The sea " * 100, config):
            begun.set()
threading.Thread(target=stream, daemon=True).start()
begun.wait()
"""


def test_a_daemon_thread_that_streams_does_not_abort_a_program_that_ends(run: Run) -> None:
    for _ in range(3):
        assert run(DAEMON) == (0, "")


DAEMON_IN_A_LIBRARY = """
import threading
import edgelm, edgelm.testing
from edgelm.config import ModelConfig
from edgelm.runtime.session import DecoderSession
path = edgelm.testing.tiny_model_path()
tokenizer, config = edgelm.Tokenizer.load(path), ModelConfig.load(path)
constraint = edgelm.Constraint.json_schema({{"type": "array", "items": {{"enum": ["a", "b", 1, 2]}}}})
begun = threading.Event()
def call():
    while True:
        {call}
        begun.set()
for _ in range(3):
    threading.Thread(target=call, daemon=True).start()
begun.wait()
"""


@pytest.mark.parametrize("call", ["constraint.compile(tokenizer)", "DecoderSession(path, config)"])
def test_a_daemon_thread_that_constrains_or_loads_does_not_abort_a_program_that_ends(run: Run, call: str) -> None:
    assert run(DAEMON_IN_A_LIBRARY.format(call=call)) == (0, "")

"""Engines and models in programs that end, or fork, while they compute."""

import os
import subprocess
import sys

import pytest

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
def test_a_fork_says_at_once_that_it_cannot_use_the_model() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], check=True)


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
def test_a_fork_takes_no_adapter_and_ends_though_a_thread_was_computing_when_it_began() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS_IN_A_STEP], check=True)


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
def test_a_fork_ends_though_it_has_none_of_the_threads_of_its_model() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS_BESIDE_SLEEPING_THREADS], check=True)


def test_an_engine_that_was_not_closed_does_not_keep_the_program_from_ending() -> None:
    program = (
        "import edgelm, edgelm.testing; engine = edgelm.Engine(edgelm.load(edgelm.testing.tiny_model_path())); "
        "next(engine.submit('x', edgelm.GenerationConfig(ignore_eos=True)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


UNREAD = """
import edgelm, edgelm.testing
def main(): ...
model = edgelm.load(edgelm.testing.tiny_model_path())
chunks = model.stream("The sea", edgelm.GenerationConfig(ignore_eos=True))
next(chunks)
"""


def test_a_program_that_ends_beside_an_unread_answer_says_nothing() -> None:
    ended = subprocess.run([sys.executable, "-c", UNREAD], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


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


def test_a_daemon_thread_that_streams_does_not_abort_a_program_that_ends() -> None:
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")


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
def test_a_daemon_thread_that_constrains_or_loads_does_not_abort_a_program_that_ends(call: str) -> None:
    program = DAEMON_IN_A_LIBRARY.format(call=call)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")

"""An engine that begins when all of a test's requests are there, however slow the machine is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from edgelm import Engine, GenerationConfig
from edgelm.decoding.answer import join


@contextmanager
def held(engine: Engine) -> Iterator[None]:
    """Keep the engine in a request of one token while the block submits its own."""
    inside, leave = threading.Event(), threading.Event()

    def wait(logits_V: NDArray[np.float32], _: np.random.Generator) -> int:
        inside.set()
        leave.wait()
        return int(logits_V.argmax())

    first = engine.submit([1, 2, 3], GenerationConfig(max_new_tokens=1, sampler=wait))
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        join(first)

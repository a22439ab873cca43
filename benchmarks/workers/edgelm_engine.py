"""edgelm, through its loop over token ids: as for the peers, no text is made of them."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgelm
from edgelm.decoding.generate import decode, prefill
from edgelm.decoding.sampling import Sampler
from edgelm.runtime.session import PREFILL_CHUNK
from workers.engine import EngineOptions, Generation


class EdgeLM:
    """Time prefill and decode, and inside them ONNX Runtime's own part."""

    def __init__(self, options: EngineOptions) -> None:
        self._model = edgelm.load(options.path, edgelm.SessionOptions(threads=options.threads))
        self._runs: list[tuple[float, float]] = []  # start and end of each run of the graph
        # Only from here can the time inside ONNX Runtime be told from the time around it.
        session = self._model.session._graph.session
        run = session.run_with_iobinding

        def timed_run(*arguments: Any) -> None:
            start = time.perf_counter()
            run(*arguments)
            self._runs.append((start, time.perf_counter()))

        session.run_with_iobinding = timed_run

    def generate(self, prompt_ids: list[int], new_tokens: int) -> Generation:
        session = self._model.session
        self._runs.clear()
        called = time.perf_counter()
        cache, sampler = session.new_cache(), Sampler(edgelm.GenerationConfig(temperature=0.0))
        logits_V = prefill(session, prompt_ids, cache)
        token_ids = [id_ for id_, _ in islice(decode(session, logits_V, cache, sampler), new_tokens)]
        ended = time.perf_counter()
        # The last runs are the decode steps. A step reaches from the start of its run to the start of the next one.
        runs = self._runs[1 - new_tokens :]
        starts = [start for start, _ in runs]
        steps = [after - before for before, after in zip(starts, [*starts[1:], ended], strict=True)]
        python = [step - (end - start) for step, (start, end) in zip(steps, runs, strict=True)]
        return Generation(token_ids=token_ids, first_token=starts[0] - called, steps=steps, python=python)

    def log_likelihood(self, ids: list[int]) -> float:
        return sum(token.logprob for token in self._model.score(ids).tokens)

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        session = self._model.session
        cache = session.new_cache()
        chunks = (ids[start : start + PREFILL_CHUNK] for start in range(0, len(ids), PREFILL_CHUNK))
        return np.concatenate([session.forward(chunk, cache, all_logits=True).copy() for chunk in chunks])


def load(options: EngineOptions) -> EdgeLM:
    return EdgeLM(options)

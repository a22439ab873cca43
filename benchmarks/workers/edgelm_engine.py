"""edgelm, through its public stream: text decoding and chunks are part of a step here, but not of the peers' steps."""

from __future__ import annotations

import time
from typing import Any

import edgelm
from workers.engine import EngineOptions, Generation


class EdgeLM:
    """Time `model.stream`, and inside it ONNX Runtime's own part."""

    def __init__(self, options: EngineOptions) -> None:
        self._model = edgelm.load(options.path, edgelm.SessionOptions(threads=options.threads))
        self._runs: list[tuple[float, float]] = []  # start and end of each run of the graph
        # Only from here can the time inside ONNX Runtime be told from the time around it.
        session = self._model.session._session
        run = session.run_with_iobinding

        def timed_run(binding: Any) -> None:
            start = time.perf_counter()
            run(binding)
            self._runs.append((start, time.perf_counter()))

        session.run_with_iobinding = timed_run

    def generate(self, prompt_ids: list[int], new_tokens: int) -> Generation:
        config = edgelm.GenerationConfig(max_new_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        self._runs.clear()
        called = time.perf_counter()
        token_ids = [id_ for chunk in self._model.stream(prompt_ids, config) for id_ in chunk.token_ids]
        ended = time.perf_counter()
        # The last runs are the decode steps. A step reaches from the start of its run to the start of the next one.
        runs = self._runs[1 - new_tokens :]
        starts = [start for start, _ in runs]
        steps = [after - before for before, after in zip(starts, [*starts[1:], ended], strict=True)]
        python = [step - (end - start) for step, (start, end) in zip(steps, runs, strict=True)]
        return Generation(token_ids=token_ids, first_token=starts[0] - called, steps=steps, python=python)

    def log_likelihood(self, ids: list[int]) -> float:
        return sum(token.logprob for token in self._model.score(ids).tokens)


def load(options: EngineOptions) -> EdgeLM:
    return EdgeLM(options)

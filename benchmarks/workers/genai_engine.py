"""onnxruntime-genai, through its own generator."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai
from numpy.typing import NDArray

from workers.engine import EngineOptions, Generation
from workers.log_likelihood import sum_log_likelihood


class GenAI:
    """A model of onnxruntime-genai; all but the threads is as its builder wrote it."""

    def __init__(self, options: EngineOptions) -> None:
        config = onnxruntime_genai.Config(options.path)
        session_options = {"intra_op_num_threads": options.threads}
        values = json.loads(Path(options.path, "genai_config.json").read_text(encoding="utf-8"))
        never_drawn = values["model"]["vocab_size"] - 1  # a reserved token, so that no generation ends early
        overlay = {"model": {"eos_token_id": never_drawn, "decoder": {"session_options": session_options}}}
        config.overlay(json.dumps(overlay))
        self._model = onnxruntime_genai.Model(config)

    def generate(self, prompt_ids: list[int], new_tokens: int) -> Generation:
        generator = self._generator(len(prompt_ids) + new_tokens)
        called = time.perf_counter()
        generator.append_tokens(np.array(prompt_ids, np.int32))
        token_ids = [self._next(generator)]
        first_token = time.perf_counter() - called
        steps = []
        for _ in range(new_tokens - 1):
            start = time.perf_counter()
            token_ids.append(self._next(generator))
            steps.append(time.perf_counter() - start)
        return Generation(token_ids=token_ids, first_token=first_token, steps=steps)

    @staticmethod
    def _next(generator: onnxruntime_genai.Generator) -> int:
        generator.generate_next_token()
        return int(generator.get_next_tokens()[0])

    def log_likelihood(self, ids: list[int]) -> float:
        return sum_log_likelihood(self.logits(ids)[:-1], ids[1:])

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        generator = self._generator(len(ids))
        generator.append_tokens(np.array(ids, np.int32))
        logits_TV: NDArray[np.float32] = generator.get_output("logits")[0]
        return logits_TV

    def _generator(self, max_length: int) -> onnxruntime_genai.Generator:
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=max_length, do_sample=False, batch_size=1)
        return onnxruntime_genai.Generator(self._model, parameters)


def load(options: EngineOptions) -> GenAI:
    return GenAI(options)

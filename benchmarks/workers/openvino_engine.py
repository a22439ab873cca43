"""OpenVINO GenAI, through its own pipeline; it runs in an environment of its own."""

from __future__ import annotations

import itertools
import time

import numpy as np
import openvino
import openvino_genai

from workers.engine import EngineOptions, Generation


class _Times(openvino_genai.StreamerBase):
    """Take the time of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        self.times += [time.perf_counter()] * (1 if isinstance(token, int) else len(token))
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """There is nothing to flush."""


class OpenVINO:
    """A GGUF file, with its attention for one sequence, which keeps no beginnings of earlier prompts."""

    def __init__(self, options: EngineOptions) -> None:
        settings = {"ATTENTION_BACKEND": "SDPA", "INFERENCE_NUM_THREADS": options.threads}
        self._pipeline = openvino_genai.LLMPipeline(options.path, "CPU", settings)

    def generate(self, prompt_ids: list[int], new_tokens: int) -> Generation:
        config = openvino_genai.GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
        ids = openvino.Tensor(np.array([prompt_ids], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt_ids)), np.int64))
        streamer = _Times()
        called = time.perf_counter()
        result = self._pipeline.generate(openvino_genai.TokenizedInputs(ids, mask), config, streamer)
        times = [called, *streamer.times]
        first, *steps = (after - before for before, after in itertools.pairwise(times))
        return Generation(token_ids=list(result.tokens[0]), first_token=first, steps=steps)

    def log_likelihood(self, ids: list[int]) -> float:
        raise NotImplementedError("the pipeline gives no logits of a prompt")


def load(options: EngineOptions) -> OpenVINO:
    return OpenVINO(options)

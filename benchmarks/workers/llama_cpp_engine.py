"""llama.cpp, through the low-level functions of llama-cpp-python, which add almost nothing to a step."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from workers.engine import EngineOptions, Generation
from workers.log_likelihood import sum_log_likelihood

_BATCH = 512  # llama.cpp's own default for one computation


class LlamaCpp:
    """A model and one context of llama.cpp; all but sizes, threads and what is switched off here is its default."""

    def __init__(self, options: EngineOptions, *, flash_attention: bool = True) -> None:
        self._silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model_parameters = llama_cpp.llama_model_default_params()
        if options.huge_pages:  # the pages of a mapped file cannot be moved to huge ones
            model_parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        model = llama_cpp.llama_model_load_from_file(options.path.encode(), model_parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = options.context, _BATCH, _BATCH
        parameters.n_threads = parameters.n_threads_batch = options.threads
        if not flash_attention:
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def generate(self, prompt_ids: list[int], new_tokens: int) -> Generation:
        self._clear()
        called = time.perf_counter()
        token_ids = [self._next(prompt_ids)]
        first_token = time.perf_counter() - called
        steps = []
        for _ in range(new_tokens - 1):
            start = time.perf_counter()
            token_ids.append(self._next(token_ids[-1:]))
            steps.append(time.perf_counter() - start)
        return Generation(token_ids=token_ids, first_token=first_token, steps=steps)

    def _next(self, ids: list[int]) -> int:
        for start in range(0, len(ids), _BATCH):  # it ends the process at a longer batch than n_batch
            piece = ids[start : start + _BATCH]
            tokens = (llama_cpp.llama_token * len(piece))(*piece)
            _check(llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(piece))))
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def log_likelihood(self, ids: list[int]) -> float:
        self._clear()
        total = 0.0
        for start in range(0, len(ids) - 1, _BATCH):
            chunk = ids[start : start + _BATCH]
            targets = ids[start + 1 : start + 1 + _BATCH]
            total += sum_log_likelihood(self._all_logits(chunk, start)[: len(targets)], targets)
        return total

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        self._clear()
        starts = range(0, len(ids), _BATCH)
        return np.concatenate([self._all_logits(ids[start : start + _BATCH], start).copy() for start in starts])

    def _all_logits(self, ids: Sequence[int], position: int) -> NDArray[np.float32]:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, id_ in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = id_, position + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        _check(llama_cpp.llama_decode(self._context, batch))
        logits_TV = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (len(ids), self._vocab_size))
        llama_cpp.llama_batch_free(batch)
        return logits_TV

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"llama_decode returned {status}.")


def load(options: EngineOptions) -> LlamaCpp:
    return LlamaCpp(options)

"""Answer: the way of one generation's tokens, from the loop to chunks of text."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.completion import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from edgelm.generate import Decoder, decode, prefill
from edgelm.generation_config import GenerationConfig
from edgelm.kv_cache import KVCache
from edgelm.sampling import Sampler, token_logprobs
from edgelm.stop import StopMatcher
from edgelm.stream_decoder import StreamDecoder
from edgelm.tokenizer import Tokenizer


class Answer:
    """Decode one answer: tokens to characters, characters to chunks, until an end token, a stop or a limit."""

    def __init__(
        self,
        *,
        session: Decoder,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        cancel: threading.Event | None,
        cache: KVCache,
    ) -> None:
        self._session, self._tokenizer = session, tokenizer
        self._prompt_ids, self._config, self._cancel, self._cache = prompt_ids, config, cancel, cache
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopMatcher(config.stop)
        end_ids = () if config.ignore_eos else session.config.eos_token_ids
        self._end_ids = frozenset(end_ids) | frozenset(config.stop_token_ids)
        self._generated = 0
        self._ids: list[int] = []  # of the chunk that is being gathered
        self._logprobs: list[TokenLogprob] = []

    def chunks(self) -> Iterator[Chunk]:
        """Yield the answer; the last chunk has the reason, the usage and the timings."""
        started = time.perf_counter()
        sampler = Sampler(self._config, self._prompt_ids)
        cached = max(0, min(self._cache.common_prefix(self._prompt_ids), len(self._prompt_ids) - 1))
        first_logits_V = prefill(self._session, self._prompt_ids, self._cache, self._cancel)
        prefilled = time.perf_counter()
        waited = 0.0  # while the consumer had the last chunk
        text, reason = "", None
        if first_logits_V is not None:
            for id_, logits_V in decode(self._session, first_logits_V, self._cache, sampler, self._cancel):
                text, reason = self._take(id_, logits_V)
                if reason is not None:
                    break
                if text:
                    yielded = time.perf_counter()
                    yield self._chunk(text)
                    waited += time.perf_counter() - yielded
                    text = ""
        if reason is None:  # the loop ended by itself
            cancelled = self._cancel is not None and self._cancel.is_set()
            text, reason = self._rest(), "cancelled" if cancelled else "length"
        yield self._chunk(
            text,
            reason,
            Usage(prompt_tokens=len(self._prompt_ids), completion_tokens=self._generated, cached_tokens=cached),
            Timings(
                prefill_seconds=prefilled - started,
                decode_seconds=time.perf_counter() - prefilled - waited,
                prefill_tokens=len(self._prompt_ids) - cached,
                decode_tokens=max(0, self._generated - 1),  # the first token comes with the prefill
            ),
        )

    def _take(self, id_: int, logits_V: NDArray[np.float32]) -> tuple[str, FinishReason | None]:
        """Add a token: return the text that it completes, and why the answer ends with it, if it does."""
        self._generated += 1
        self._ids.append(id_)
        if self._config.logprobs is not None:
            self._logprobs.append(describe_token(self._tokenizer, logits_V, id_, self._config.logprobs))
        if id_ in self._end_ids:
            return self._rest(), "stop"
        text, stopped = self._stops.push(self._decoder.push(id_))
        if stopped:
            return text, "stop"
        if self._generated == self._config.max_new_tokens:
            return text + self._rest(), "length"
        return text, None

    def _rest(self) -> str:
        """Return what was held back: half a character, or the beginning of a stop."""
        text, stopped = self._stops.push(self._decoder.flush())
        return text if stopped else text + self._stops.flush()

    def _chunk(
        self,
        text: str,
        reason: FinishReason | None = None,
        usage: Usage | None = None,
        timings: Timings | None = None,
    ) -> Chunk:
        ids, self._ids = tuple(self._ids), []
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Chunk(text=text, token_ids=ids, logprobs=logprobs, finish_reason=reason, usage=usage, timings=timings)


def describe_token(tokenizer: Tokenizer, logits_V: NDArray[np.float32], id_: int, alternatives: int) -> TokenLogprob:
    """Return a token's log-probability under `logits_V`, with its most likely alternatives."""
    logprob, best = token_logprobs(logits_V, id_, alternatives)
    return TokenLogprob(
        id=id_,
        text=tokenizer.token_text(id_),
        logprob=logprob,
        alternatives=tuple(
            TokenLogprob(id=other, text=tokenizer.token_text(other), logprob=value) for other, value in best
        ),
    )


def join(chunks: Iterable[Chunk]) -> Completion:
    """Join the chunks of one answer."""
    parts = list(chunks)
    last = parts[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    assert last.timings is not None
    return Completion(
        text="".join(part.text for part in parts),
        token_ids=tuple(id_ for part in parts for id_ in part.token_ids),
        logprobs=tuple(item for part in parts for item in part.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        timings=last.timings,
    )

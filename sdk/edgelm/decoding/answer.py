"""Answer: the way of one generation's tokens, from the loop to chunks of text."""

from __future__ import annotations

import itertools
import os
import reprlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgelm.arguments import as_list
from edgelm.completion import Chunk, Completion, FinishReason, Timings, TokenLogprob, ToolCall, ToolCallDelta, Usage
from edgelm.config import ModelConfig
from edgelm.decoding.beam_search import BeamSearch
from edgelm.decoding.context_shift import fitted
from edgelm.decoding.generate import Decoder, computed_together, decode, prefill
from edgelm.decoding.sampling import Sampler, token_logprobs
from edgelm.decoding.speculation import Speculator, speculate
from edgelm.errors import ConfigError, ContextLengthError, EdgeLMError, OutOfMemoryError
from edgelm.generation_config import GenerationConfig
from edgelm.memory.kv_batch import KVBatch, longest_row
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.out_of_memory import out_of_memory
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.text.stop import StopMatcher
from edgelm.text.stream_decoder import StreamDecoder
from edgelm.text.token_healing import PrefixMatcher, back_up
from edgelm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgelm.structure.constraint_matcher import ConstraintMatcher


_OWN_CACHE = "Read each to its end before the next begins, or give each a cache of its own (new_cache)."


class Answer:
    """Decode one answer: tokens to characters, characters to chunks, until an end token, a stop or a limit.

    `chunks` runs the loop for one sequence; the engine, which runs many answers in one loop, samples with `sampler` and
    hands each token to `take`. speculator: what guesses tokens ahead; None runs the plain loop. source_ids: what an
    encoder reads; the prompt is then what the decoder begins with.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        model_config: ModelConfig,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        speculator: Speculator | None,
        source_ids: Sequence[int],
    ) -> None:
        _check_tokens(config, model_config.vocab_size)
        begun = b""  # what the answer has to begin with, and the prompt says already
        if config.token_healing:
            prompt_ids, begun = back_up(tokenizer, prompt_ids)
        self.keep: int | None = None  # with a context shift, how many of the first tokens stay
        if config.context_shift is not None:
            self.keep = max(config.context_shift, len(tokenizer.leading_ids))
            prompt_ids = fitted(prompt_ids, self.keep, model_config.max_position_embeddings)
        if config.num_beams > 1 and len(prompt_ids) > (most := longest_row(model_config)):
            raise ContextLengthError(
                f"The prompt has {len(prompt_ids)} tokens; with several beams this model reads up to {most}. Shorten "
                "it, or set num_beams to 1."
            )
        self.prompt_ids, self.config, self.speculator = prompt_ids, config, speculator
        self.source_ids = source_ids
        self.generated = 0
        self.most = config.max_new_tokens or model_config.max_position_embeddings  # tokens of the answer
        self._computed_together = len(prompt_ids)  # of the tokens in the cache
        self._tokenizer = tokenizer
        # An answer to a source is a text of its own.
        self._keeps_leading_space = bool(begun) or goes_on(tokenizer, () if source_ids else prompt_ids, config)
        self._decoder = self._new_decoder(skip=len(begun))
        self._stops = StopMatcher(config.stop)
        end_ids = () if config.ignore_eos else model_config.eos_token_ids
        self._end_ids = frozenset(end_ids) | frozenset(config.stop_token_ids)
        matcher: ConstraintMatcher | PrefixMatcher | None = None
        if config.constraint is not None:
            matcher = config.constraint.compile(tokenizer, self._end_ids)
        elif begun:
            matcher = PrefixMatcher(tokenizer, begun)
        self.sampler = Sampler(config, prompt_ids, matcher, _breakers(tokenizer, config), self._end_ids, source_ids)
        if speculator is not None:
            speculator.extend(prompt_ids)
        self._ids: list[int] = []  # of the chunk that is being gathered
        self._logprobs: list[TokenLogprob] = []

    def chunks(
        self, session: Decoder, given: KVCache | None, prefixes: PrefixCache, cancel: threading.Event | None
    ) -> Generator[Chunk, None, None]:
        """Yield the answer; the last chunk has the reason, the usage and the timings.

        What `prefixes` or the cache that is given hold of the prompt is not computed again, and `prefixes` keep what
        was computed.

        Raises:
            EdgeLMError: another generation computes with the cache that is given, or did so since the last chunk.
        """
        chunks = self._chunks(session, given, prefixes, cancel)
        return chunks if given is None else self._in_turn(given, chunks)

    def _in_turn(self, cache: KVCache, chunks: Generator[Chunk, None, None]) -> Generator[Chunk, None, None]:
        """Yield chunks that are computed with a cache which other generations may have, too."""
        user, has_begun = object(), False
        try:
            while True:
                if cache.turn.locked():
                    raise EdgeLMError(f"Another answer is being computed with the cache of this one. {_OWN_CACHE}")
                with cache.turn:  # no call of acquire, behind which an interrupt would leave it locked
                    if has_begun and cache.user is not user:
                        raise EdgeLMError(
                            f"Another answer has gone on with the cache of this one, which cannot. {_OWN_CACHE}"
                        )
                    cache.user, has_begun = user, True
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            chunks.close()

    def _chunks(
        self, session: Decoder, given: KVCache | None, prefixes: PrefixCache, cancel: threading.Event | None
    ) -> Generator[Chunk, None, None]:
        session.check_process()  # first: a fork shares the mirrored memory of a cache, and would write into it
        started, process = time.perf_counter(), os.getpid()
        cache = session.new_cache() if given is None else given
        user = cache.user
        cache.use_adapter(self.config.adapter)
        session.adopt(cache)  # before it has what its adapter computed: another one may get that name
        cache.read_source(self.source_ids)
        together = computed_together(session, cache, self.prompt_ids)
        self._computed_together = len(together)
        cached = prefixes.fill(cache, together)
        waited = 0.0  # while the consumer had the last chunk
        text, reason = "", None
        try:
            first_logits_V = prefill(session, self.prompt_ids, cache, cancel, prefixes)
            prefilled = time.perf_counter()
            unread = len(self.prompt_ids) - cache.length  # where it was cancelled before the end of the prompt
            if first_logits_V is not None:
                with closing(self._decode(session, first_logits_V, cache, prefixes, cancel)) as tokens:
                    for id_, logits_V in tokens:
                        prefixes.slide(cache, self._computed_together)
                        text, reason = self.take(id_, logits_V)
                        if reason is not None:
                            break
                        if text:
                            yielded = time.perf_counter()
                            yield self.chunk(text)
                            waited += time.perf_counter() - yielded
        except OutOfMemoryError:
            raise
        except MemoryError as error:
            raise out_of_memory(error) from error
        finally:
            # Otherwise another answer has gone on with the cache, or a fork ends its copy of this generator.
            if cache.user is user and os.getpid() == process:
                prefixes.keep(cache, self._computed_together, is_spent=given is None)
                if cache.length == 0:  # a conversation whose first question was taken back needs no adapter
                    cache.use_adapter(None)
        if reason is None:  # the loop ended by itself
            cancelled = cancel is not None and cancel.is_set()
            text, reason = self.rest(), "cancelled" if cancelled else "length"
        seconds = 0.0, prefilled - started, time.perf_counter() - prefilled - waited
        yield self.last_chunk(text, reason, cached, max(0, self._prompt_tokens - cached - unread), seconds)

    def _new_decoder(self, *, skip: int = 0) -> StreamDecoder:
        return StreamDecoder(
            self._tokenizer,
            visible=self.config.visible_control_tokens,
            keep_leading_space=self._keeps_leading_space,
            skip=skip,
        )

    def _ends(self, token_ids: Sequence[int]) -> bool:
        """Tell whether an answer is over with the last of these tokens, its limit aside."""
        if token_ids[-1] in self._end_ids:
            return True
        if not self.config.stop:
            return False  # without decoding all tokens at each step of a search
        decoder, stops = self._new_decoder(), StopMatcher(self.config.stop)
        return any(
            stops.push(decoder.push(id_), may_stop=place >= self.config.min_new_tokens)[1]
            for place, id_ in enumerate(token_ids)
        )

    def _decode(
        self,
        session: Decoder,
        logits_V: NDArray[np.float32],
        cache: KVCache,
        prefixes: PrefixCache,
        cancel: threading.Event | None,
    ) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
        if self.config.num_beams > 1:
            search = self.beam_search(KVBatch(session.config))
            return search.run(session, logits_V, cache, self.sampler, cancel)
        if self.keep is None:
            return self._decode_in_context(session, logits_V, cache, cancel)
        return self._decode_on(session, logits_V, cache, prefixes, self.keep, cancel)

    def beam_search(self, batch: KVBatch) -> BeamSearch:
        """Return the search for this answer, whose config asks for one, not begun; its beams are rows of `batch`."""
        forced = len(self.prompt_ids) - 1 if self.source_ids else 0  # behind the decoder's start, which is no answer's
        return BeamSearch(self.config, self._ends, len(self._end_ids), batch, forced)

    def _decode_in_context(
        self, session: Decoder, logits_V: NDArray[np.float32], cache: KVCache, cancel: threading.Event | None
    ) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
        if self.speculator is None:
            return decode(session, logits_V, cache, self.sampler, cancel)
        return speculate(session, logits_V, cache, self.sampler, self.speculator, cancel)

    def _decode_on(
        self,
        session: Decoder,
        first_logits_V: NDArray[np.float32],
        cache: KVCache,
        prefixes: PrefixCache,
        keep: int,
        cancel: threading.Event | None,
    ) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
        """Decode, and whenever the context is full, shift it."""
        logits_V: NDArray[np.float32] | None = first_logits_V
        while logits_V is not None:
            newest = 0
            with closing(self._decode_in_context(session, logits_V, cache, cancel)) as tokens:
                for newest, row_V in tokens:
                    yield newest, row_V
            if cancel is not None and cancel.is_set():
                return
            # The newest token is not in the cache yet.
            text = fitted([*cache.token_ids, newest], keep, session.config.max_position_embeddings)
            prefixes.keep(cache, self._computed_together)
            cache.truncate(0)
            self._computed_together = len(computed_together(session, cache, text))
            logits_V = prefill(session, text, cache, cancel, prefixes)

    def take(self, id_: int, logits_V: NDArray[np.float32]) -> tuple[str, FinishReason | None]:
        """Add a token: return the text that it completes, and why the answer ends with it, if it does."""
        self.generated += 1
        self._ids.append(id_)
        if self.speculator is not None:
            self.speculator.extend((id_,))
        if self.config.logprobs is not None:
            self._logprobs.append(describe_token(self._tokenizer, logits_V, id_, self.config.logprobs))
        if id_ in self._end_ids:
            return self.rest(), "stop"
        text, stopped = self._push(self._decoder.push(id_))
        if stopped:
            return text, "stop"
        if self.sampler.ends_with(self.generated):
            return text + self.rest(), "stop"
        if self.generated == self.most:
            return text + self.rest(), "length"
        return text, None

    def rest(self) -> str:
        """Return what was held back: half a character, or the beginning of a stop."""
        text, stopped = self._push(self._decoder.flush())
        return text if stopped else text + self._stops.flush()

    def _push(self, text: str) -> tuple[str, bool]:
        """Return what can be shown after the newest token's text, and whether a stop ends the answer here."""
        return self._stops.push(text, may_stop=self.generated > self.config.min_new_tokens)

    @property
    def _prompt_tokens(self) -> int:
        return len(self.source_ids) + len(self.prompt_ids)

    def last_chunk(
        self, text: str, reason: FinishReason, cached: int, prefilled: int, seconds: tuple[float, float, float]
    ) -> Chunk:
        """Make the last chunk; cached, prefilled: tokens of the prompt. seconds: queued, of the prompt, of the rest."""
        queued, prefill_seconds, decode_seconds = seconds
        timings = Timings(
            queued_seconds=queued,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
            prefill_tokens=prefilled,
            decode_tokens=max(0, self.generated - 1),  # the first token comes with the prefill
            drafted_tokens=0 if self.speculator is None else self.speculator.drafted,
            accepted_tokens=0 if self.speculator is None else self.speculator.accepted,
        )
        usage = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self.generated, cached_tokens=cached)
        return self.chunk(text, reason, usage, timings)

    def chunk(
        self,
        text: str,
        reason: FinishReason | None = None,
        usage: Usage | None = None,
        timings: Timings | None = None,
    ) -> Chunk:
        """Make a chunk of `text` and the tokens since the chunk before."""
        ids, self._ids = tuple(self._ids), []
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Chunk(
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=reason,
            stop=self._stops.found if reason == "stop" else None,
            usage=usage,
            timings=timings,
        )


def goes_on(tokenizer: Tokenizer, prompt_ids: Sequence[int], config: GenerationConfig) -> bool:
    """Tell whether an answer goes on with a prompt's text, and keeps a space that it begins with."""
    if config.constraint is not None and not config.constraint.after:
        return True  # it says what the text is, to the first space
    return not config.begins_text and not tokenizer.control_token_ids.issuperset(prompt_ids)


def _check_tokens(config: GenerationConfig, size: int) -> None:
    """Check that the tokens a config names are the model's, before anything is computed.

    Raises:
        ConfigError: one is not.
    """
    for name in ("logit_bias", "stop_token_ids"):
        for id_ in getattr(config, name):
            if not 0 <= id_ < size:
                raise ConfigError(f"{name} names token {id_}; the model's ids are 0 to {size - 1}.")


def _breakers(tokenizer: Tokenizer, config: GenerationConfig) -> frozenset[int]:
    """Return the tokens at which repeated sequences end: control tokens, and those that have one of the texts."""
    if config.dry_multiplier == 0.0:
        return frozenset()
    return tokenizer.control_token_ids | tokenizer.ids_with(config.dry_breakers)


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


def taken(chunks: Generator[Chunk, None, None], take: Callable[[Chunk], Chunk]) -> Generator[Chunk, None, None]:
    """Yield what `take` makes of each chunk; closing this closes the chunks."""
    with closing(chunks):
        for chunk in chunks:
            yield take(chunk)


def join(chunks: Iterable[Chunk]) -> Completion:
    """Join the chunks of one answer, all of them: what was streamed becomes the Completion that `generate` returns.

    Raises:
        ConfigError: a chunk is missing, or these are no chunks.
    """
    parts = as_list(chunks, "join takes the chunks of one answer")
    if others := [part for part in parts if not isinstance(part, Chunk)]:
        raise ConfigError(f"join takes the chunks of one answer; {reprlib.repr(others[0])} is none.")
    last = parts[-1] if parts else None
    if last is None or last.finish_reason is None or last.usage is None or last.timings is None:
        raise ConfigError(
            f"The {len(parts)} chunks do not end with the last one of an answer, which has its finish_reason. Read the "
            "answer to its end, and join all of its chunks."
        )
    token_ids = tuple(id_ for part in parts for id_ in part.token_ids)
    if len(token_ids) < last.usage.completion_tokens:
        raise ConfigError(
            f"The chunks have {len(token_ids)} of the answer's {last.usage.completion_tokens} tokens: the others were "
            "read before, or left out. Join all of its chunks."
        )
    return Completion(
        text="".join(part.text for part in parts),
        token_ids=token_ids,
        logprobs=tuple(item for part in parts for item in part.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        timings=last.timings,
        reasoning="".join(part.reasoning for part in parts),
        tool_calls=_join_calls(part.tool_calls for part in parts),
        stop=last.stop,
    )


def _join_calls(deltas: Iterable[Sequence[ToolCallDelta]]) -> tuple[ToolCall, ...]:
    pieces: dict[int, list[ToolCallDelta]] = {}
    for delta in itertools.chain.from_iterable(deltas):
        pieces.setdefault(delta.index, []).append(delta)
    return tuple(
        ToolCall(id=parts[0].id or "", name=parts[0].name or "", arguments="".join(part.arguments for part in parts))
        for parts in pieces.values()
    )

"""The generation loop: token ids in, an iterator of token ids out. It knows no text."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.decoding.sampling import Sampler
from edgelm.errors import ContextLengthError
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import BLOCK, KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.adapter import Adapter, AdapterManifest
from edgelm.runtime.session import PREFILL_CHUNK, PREFILL_GRAPH_CHUNK
from edgelm.runtime.stop_switch import StopSwitch

_SNAPSHOT_EVERY = 512  # tokens: two calls of a prefill graph, beside which a copy of the states takes little
_OPENING = 16  # tokens by which a template opens an answer, and which may not be there in the next turn


class Decoder(Protocol):
    """What the loop needs of a model: DecoderSession, or a double of it (edgelm.testing).

    Who inherits from it has no faster ways than `forward`.
    """

    config: ModelConfig

    @property
    def adapters(self) -> Mapping[str, AdapterManifest]:
        """The adapters that are loaded now, by name."""

    def new_cache(self) -> KVCache:
        """Return an empty KV cache for this model."""
        return KVCache(self.config)

    def adopt(self, cache: KVCache) -> None:
        """Take a cache that was read from a file, as DecoderSession.adopt does."""

    def check_process(self) -> None:
        """Check that this process can compute, as DecoderSession.check_process does."""

    def check_takes_adapters(self) -> None:
        """Check that adapters can be loaded, as DecoderSession.check_takes_adapters does."""

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """Load an adapter, which caches choose by its name, as DecoderSession.load_adapter does."""

    def unload_adapter(self, name: str) -> None:
        """Unload an adapter, as DecoderSession.unload_adapter does."""

    def forward(
        self,
        token_ids: Sequence[int],
        cache: KVCache,
        *,
        all_logits: bool = False,
        stop: StopSwitch | None = None,
    ) -> NDArray[np.float32]:
        """Compute tokens after those in `cache`, as DecoderSession.forward does."""

    def reads_prompts(self, cache: KVCache) -> bool:
        """Tell whether a graph of its own reads prompts into a cache, as DecoderSession.reads_prompts does."""
        return False

    def read_prompt(self, token_ids: Sequence[int], cache: KVCache, *, stop: StopSwitch | None = None) -> None:
        """Compute tokens of a prompt, as DecoderSession.read_prompt does."""
        self.forward(token_ids, cache, stop=stop)

    def forward_hidden(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute tokens' hidden states, as DecoderSession.forward_hidden does."""

    def forward_single_steps(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute tokens as single steps, as DecoderSession.forward_single_steps does."""
        return np.concatenate([self.forward((id_,), cache) for id_ in token_ids])

    def most_single_steps(self) -> int:
        """Return how many tokens of a text are computed at once, as DecoderSession.most_single_steps does."""
        return 1

    def forward_rows(
        self, token_ids: Sequence[int], batch: KVBatch, guesses: Sequence[Sequence[int]] = ()
    ) -> NDArray[np.float32]:
        """Compute one token for each of the first rows of a batch, and guesses, as DecoderSession.forward_rows does."""
        return np.concatenate([self.forward((id_,), row) for id_, row in zip(token_ids, batch.rows, strict=False)])


def prefill(
    session: Decoder,
    token_ids: Sequence[int],
    cache: KVCache,
    cancel: threading.Event | None = None,
    prefixes: PrefixCache | None = None,
) -> NDArray[np.float32] | None:
    """Compute those of `token_ids` that `cache` does not hold yet, in chunks; what differs in it is dropped first.

    prefixes: where what leaves the windows of a model is kept; None, and the cache holds all of it.

    Returns the logits [V] after the last token, or None where `cancel` was set between two chunks.

    Raises:
        ContextLengthError: the tokens do not fit the model's context, or there are none.
    """
    limit = session.config.max_position_embeddings
    if not token_ids:
        raise ContextLengthError("The prompt has no tokens; write at least one character.")
    if len(token_ids) > limit:
        raise ContextLengthError(
            f"The prompt has {len(token_ids)} tokens; this model's maximum context length is {limit}. Shorten it."
        )
    together = computed_together(session, cache, token_ids)
    cache.keep_beginning(together)
    logits_V: NDArray[np.float32] | None = None
    while logits_V is None:
        if cancel is not None and cancel.is_set():
            return None
        logits_V = compute_piece(session, token_ids, cache)
        if prefixes is not None:
            prefixes.slide(cache, len(together))
    return logits_V


def computed_together(session: Decoder, cache: KVCache, token_ids: Sequence[int]) -> Sequence[int]:
    """Return the tokens of a prompt that are computed in chunks: all, or all but the last, where a graph of its own
    reads prompts into `cache`: that one gives no logits, so that the decoder's graph computes the last token as a step.
    """
    return token_ids[:-1] if session.reads_prompts(cache) else token_ids


def compute_piece(
    session: Decoder,
    token_ids: Sequence[int],
    cache: KVCache,
    *,
    shared_chunk: int | None = None,
    stop: StopSwitch | None = None,
) -> NDArray[np.float32] | None:
    """Compute the next piece of a prompt, behind what `cache` holds of it.

    shared_chunk: how many tokens at once, beside other work; None is what is fastest alone. The bits are the same.

    Returns the logits [V] after the prompt's last token, or None while there is more to compute.

    Raises:
        ContextLengthError, ProviderError, StoppedError: as from DecoderSession.forward.
    """
    short_context = session.config.short_context
    if short_context is not None and cache.capacity <= short_context < len(token_ids):
        # LongRoPE: what was computed as a short text's is of no use, and would be computed again behind its last piece.
        cache.truncate(0)
        cache.reserve(len(token_ids))
    together = computed_together(session, cache, token_ids)
    largest = PREFILL_CHUNK if together is token_ids else PREFILL_GRAPH_CHUNK
    chunk = next_chunk(together, cache.length, shared_chunk or largest)
    snapshot_at = _next_snapshot(cache, len(together))
    if snapshot_at is not None:
        chunk = chunk[: snapshot_at - cache.length]
    logits_V: NDArray[np.float32] | None = None
    if together is token_ids:
        logits_V = session.forward(chunk, cache, stop=stop)[0]
    elif chunk:
        session.read_prompt(chunk, cache, stop=stop)
    if cache.length == snapshot_at:
        cache.take_snapshot()
    if cache.length < len(together):
        return None
    if together is not token_ids:
        logits_V = session.forward(token_ids[-1:], cache)[0]
    return logits_V


def _next_snapshot(cache: KVCache, prompt_tokens: int) -> int | None:
    """Return the next place for a snapshot of the states: where another text was found to go on differently, every
    _SNAPSHOT_EVERY tokens, and close to the end of the prompt, for the conversation's next turn.
    """
    if not cache.has_states:
        return None
    last = (prompt_tokens - _OPENING) // BLOCK * BLOCK
    places = cache.branch, (cache.length // _SNAPSHOT_EVERY + 1) * _SNAPSHOT_EVERY, last
    return min((place for place in places if cache.length < place <= last), default=None)


def next_chunk(token_ids: Sequence[int], start: int, size: int = PREFILL_CHUNK) -> Sequence[int]:
    """Return the tokens of a prompt to compute at once after the first `start`.

    Chunks end at multiples of `size`, so that a prompt whose beginning was kept is computed in the calls, and to the
    bits, of one that was not. A last token behind a whole block would be alone in its group of queries or not, by where
    the call begins, and a query that is alone takes another path through the attention: so the call begins one block
    before it, always. Groups have twice as many queries as a head has dimensions, which are whole blocks for most.
    """
    end = min((start // size + 1) * size, len(token_ids))
    if len(token_ids) % BLOCK == 1:
        last = max(0, len(token_ids) - 1 - BLOCK)
        end = min(end, last) if start < last else len(token_ids)
    return token_ids[start:end]


def decode(
    session: Decoder,
    logits_V: NDArray[np.float32],
    cache: KVCache,
    sampler: Sampler,
    cancel: threading.Event | None = None,
) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
    """Yield each new token with the logits [V] it was drawn from, until the context is full or `cancel` is set.

    A token enters the cache when the next one is asked for, and with it those that a constraint forces after it. The
    logits are overwritten by the next step.
    """
    limit = session.config.max_position_embeddings
    while True:
        token_id = sampler.sample(logits_V)
        yield token_id, logits_V
        if cache.length >= limit or (cancel is not None and cancel.is_set()):
            return
        forced = sampler.forced_tokens(limit - cache.length - 1)
        rows_TV = session.forward((token_id, *forced), cache, all_logits=bool(forced))
        yield from zip(forced, rows_TV, strict=False)
        logits_V = rows_TV[-1]

"""The generation loop: token ids in, an iterator of token ids out. It knows no text."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.decoding.sampling import Sampler
from edgelm.errors import ContextLengthError
from edgelm.memory.kv_batch import KVBatch
from edgelm.memory.kv_cache import KVCache
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.package.adapter import Adapter
from edgelm.runtime.stop_switch import StopSwitch

# One matrix product over 128 tokens beats 128 products over one; larger chunks lose that to attention, which computes
# the masked positions of a chunk too (docs/results/graph-and-settings.md).
PREFILL_CHUNK = 128


class Decoder(Protocol):
    """What the loop needs of a model: DecoderSession, or a double of it (edgelm.testing)."""

    @property
    def config(self) -> ModelConfig:
        """The features of the Transformer."""

    def new_cache(self) -> KVCache:
        """Return an empty KV cache for this model."""

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

    def forward_hidden(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute tokens' hidden states, as DecoderSession.forward_hidden does."""

    def forward_single_steps(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.float32]:
        """Compute tokens as single steps, as DecoderSession.forward_single_steps does."""

    def most_single_steps(self, cache: KVCache) -> int:
        """Return how many tokens `forward_single_steps` computes at once."""

    def forward_rows(self, token_ids: Sequence[int], batch: KVBatch) -> NDArray[np.float32]:
        """Compute one token for each of the first rows of a batch, as DecoderSession.forward_rows does."""


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
            f"The prompt has {len(token_ids)} tokens; the model's context holds {limit}. Shorten the prompt."
        )
    # The last token is always computed, for its logits, and never alone, which gives other bits than the whole prompt.
    cache.truncate(min(cache.common_prefix(token_ids), max(0, len(token_ids) - 2)))
    logits_V: NDArray[np.float32] | None = None
    while cache.length < len(token_ids):
        if cancel is not None and cancel.is_set():
            return None
        logits_V = session.forward(next_chunk(token_ids, cache.length), cache)[0]
        if prefixes is not None:
            prefixes.slide(cache, len(token_ids))
    return logits_V


def next_chunk(token_ids: Sequence[int], start: int, size: int = PREFILL_CHUNK) -> Sequence[int]:
    """Return the tokens of a prompt to compute at once after the first `start`.

    Chunks end at multiples of `size`, so that a prompt whose beginning was kept is computed in the calls, and to the
    bits, of one that was not. No size leaves a last token alone that PREFILL_CHUNK does not: a call of one token takes
    another path through the attention.
    """
    end = min((start // size + 1) * size, len(token_ids))
    if len(token_ids) - end == 1 and end % PREFILL_CHUNK:
        end += 1
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

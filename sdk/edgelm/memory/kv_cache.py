"""KVCache: the keys and values of the tokens computed so far, in buffers that grow in steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgelm.arguments import as_path, is_whole
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, ContextLengthError, EdgeLMError, OutOfMemoryError, PackageError
from edgelm.files import atomic
from edgelm.memory import huge_pages
from edgelm.memory.available_memory import available_memory
from edgelm.memory.cache_layout import StateLayout, cache_layout
from edgelm.memory.holders import Holders
from edgelm.memory.out_of_memory import memory_errors_told
from edgelm.memory.returned_memory import CAN_RETURN, give_back
from edgelm.memory.saved_cache import WITHOUT, SavedCache, parts_of
from edgelm.memory.snapshots import Snapshots, States

# Growing copies the whole cache: a quarter more each time keeps the copies rare, and the unused rest small.
GROWTH_STEP = 128
# Attention computes the queries of one call in groups of 32 or more, counted from the call's first token, and the last
# group by another path where it is one query alone. Calls that begin at multiples of 32 therefore give the bits of a
# prompt that was computed from its beginning.
BLOCK = 32
# Layers with a window keep so many tokens more: guesses that prove wrong, and the end of a turn that is written another
# way, leave the cache again, and what is before them must be there.
_BEHIND_WINDOW = 128

KeysOrValues = NDArray[np.float32 | np.int8]
# Copies the keys and values of the tokens from the first number to the second into buffers.
_Fetch = Callable[[Sequence[KeysOrValues], int, int], None]


@memory_errors_told()
def zeros(config: ModelConfig, rows: int, capacity: int) -> list[KeysOrValues]:
    """Return the arrays of a model's `cache_layout`.

    Zeros, not empty: memory that was never written costs none, and no stray NaN can reach the attention. A window gives
    back parts of pages, which huge ones would take again.

    Raises:
        OutOfMemoryError: there is no memory for them.
    """
    layout = cache_layout(config)
    count = config.kept_buffers
    kept = [buffer for buffer in layout[:count] if buffer.window is None]
    if len(kept) < count or len(set(kept)) > 1:
        kept = []
    arrays = huge_pages.zeros(len(kept), kept[0].shape(rows, capacity), kept[0].type) if kept else []
    return arrays + [np.zeros(buffer.shape(rows, capacity), buffer.type) for buffer in layout[len(kept) :]]


def grown_capacity(capacity: int, length: int, most: int) -> int:
    """Return the capacity to have next, up to `most`, where `length` tokens do not fit `capacity`."""
    wanted = max(length, capacity + capacity // 4)
    return min(-(-wanted // GROWTH_STEP) * GROWTH_STEP, most)


def most_bytes(config: ModelConfig, tokens: int | None = None) -> int:
    """Return how many bytes a cache of so many tokens takes, with the keys and values of windows given back; None: of a
    whole context.
    """
    length = tokens or config.max_position_embeddings
    waiting = 2 * GROWTH_STEP  # tokens that have left a window, and whose memory is not given back yet
    return config.state_bytes + sum(
        buffer.bytes_per_token
        * (length if buffer.window is None else min(length, buffer.window + _BEHIND_WINDOW + waiting))
        for buffer in cache_layout(config)
    )


class KVCache:
    """Hold keys and values of L layers for one sequence.

    `buffers` are arrays [B=1, K, C, H] of float32, or of int8 where the package keeps them so (`config.kv_cache`), as
    `cache_layout` lists them: of those layers the keys of number i at 2i and its values at 2i + 1 (at i both in one,
    with latent attention), and others where layers have something in the place of attention, in float32. C is the
    capacity, of which the first `length` positions are filled. The runtime writes new positions in place, so that a
    step copies nothing. The cache belongs to one generation at a time: it is not safe to share between threads.

    Layers with a window read no more than that, so `slide` gives back the memory of the first `released` tokens there.
    Their places stay, so that nothing is bound again, and read zeros: the attention multiplies them by zero.

    States are those after the last token. `snapshots` are copies of the states at some earlier places, by the number of
    tokens there: a cache that is truncated goes back to the last one that is left.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        layout = cache_layout(config)
        self._windows = [buffer.window for buffer in layout]
        self._first_state = sum(not isinstance(buffer, StateLayout) for buffer in layout)
        self.has_states = self._first_state < len(layout)
        self.snapshots = Snapshots()
        self.branch = 0  # where another text that begins like this one goes on differently: a place for a snapshot
        self._window = max((window for window in self._windows if window is not None), default=None)
        self.released = 0
        self.token_ids: list[int] = []
        self.buffers = zeros(self.config, 1, 0)
        self._settled = self._until = 0  # with a fetch: how many tokens are in the buffers, and in its memory
        self.binding: Any = None  # the session's: its graph, bound to the memory of these buffers
        self.model: str | None = None  # the fingerprint of the one that it is of; `is_for` says which
        self.adapter: str | None = None  # what computes the tokens beside the model; `use_adapter` changes it
        self.holders: Holders | None = None  # the session's, which knows this one
        self.source_ids: tuple[int, ...] = ()  # what an encoder has read; `read_source` changes it
        self.source_values: Sequence[Any] = ()  # the session's: the keys and values that the encoder made of it
        self.turn = threading.Lock()  # held by the generation that computes with it now
        self.user: object = None  # the generation that goes on with it

    def __repr__(self) -> str:
        return f"<KVCache: {self.length} tokens, room for {self.capacity}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, or copied otherwise than by `clone`: a copy would write into the same buffers."""
        raise EdgeLMError(
            "A KV cache is neither pickled nor copied by the module copy: what computes with it writes into its "
            "memory. Copy it with clone(), and give it to another process with save() and KVCache.load."
        )

    @property
    def length(self) -> int:
        """How many tokens are in the cache."""
        return len(self.token_ids)

    @property
    def buffers(self) -> list[KeysOrValues]:
        """The keys and values, up to date."""
        self.settle()
        return self._buffers

    @buffers.setter
    def buffers(self, buffers: list[KeysOrValues]) -> None:
        self._buffers = buffers
        self._fetch: _Fetch | None = None
        self.capacity = buffers[0].shape[2] if buffers else 0  # how many tokens fit before the next growth

    @property
    def other_buffers(self) -> list[KeysOrValues]:
        """What there is beside keys and values, and is always here."""
        return self._buffers[self.config.kept_buffers :]

    @property
    def _states(self) -> list[KeysOrValues]:
        return self._buffers[self._first_state :]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Say that these tokens were computed."""
        self.token_ids.extend(token_ids)
        if self.has_states and len(token_ids) == 1 and self.length % BLOCK == 0:
            self.take_snapshot(is_passing=True)

    def take_snapshot(self, *, is_passing: bool = False) -> None:
        """Keep a copy of the states behind the last token, where a model has any; is_passing: in an answer."""
        if self.has_states:
            self.snapshots.add(self.length, [state.copy() for state in self._states], is_passing=is_passing)

    def go_on_from(self, states: States) -> None:
        """Take the states of the tokens in the cache, which were computed before; they are not written to."""
        self._write(states)
        self.snapshots.add(self.length, states)

    def forget_states(self) -> None:
        """Forget the states behind the last token, and all tokens down to the last snapshot."""
        if self.has_states:
            self._go_back(self.length)

    def begin_states(self) -> None:
        """Let the states be those before a text."""
        self._write([0] * len(self._states))

    def _write(self, states: Sequence[NDArray[Any] | int]) -> None:
        for state, kept in zip(self._states, states, strict=True):
            state[:] = kept

    def _go_back(self, length: int) -> None:
        """Take the states of the last snapshot of the first `length` tokens, and forget all tokens behind it."""
        place = self.snapshots.last(length)
        try:
            self.snapshots.forget_after(place)
            if place:
                self._write(self.snapshots.states[place])
            else:
                self.begin_states()
            self._cut(place)
        except BaseException:  # an interrupt, when the states are of one place and the tokens of another
            self.snapshots.forget_after(0)
            self._cut(0)
            self.begin_states()
            raise

    def _cut(self, length: int) -> None:
        self._settled, self._until = min(self._settled, length), min(self._until, length)
        del self.token_ids[length:]

    def filled(self, i: int) -> slice:
        """Return which places of buffer i hold tokens; all of a state."""
        if i >= self._first_state:
            return slice(None)
        return slice(0 if self._windows[i] is None else self.released, self.length)

    @property
    def is_to_slide(self) -> bool:
        """Whether the layers with a window hold so much more than it that giving it back is worth the call."""
        return CAN_RETURN and self._unseen >= self.released + GROWTH_STEP

    @property
    def _unseen(self) -> int:
        """How many first tokens no query to come sees in layers with a window."""
        return 0 if self._window is None else self.length - self._window - _BEHIND_WINDOW

    def slide(self) -> None:
        """Give back the memory of what has left the windows, where `is_to_slide`; on Linux, elsewhere it stays."""
        if not self.is_to_slide:
            return
        self.released = self._unseen
        for window, buffer in zip(self._windows, self._buffers, strict=True):
            if window is not None:
                for head_CH in buffer[0]:
                    give_back(head_CH[: self.released])

    def is_for(self, config: ModelConfig, fingerprint: str) -> bool:
        """Tell whether a model may compute with it: the first one that asks, and no other of the same config either."""
        if self.config != config:
            return False
        self.model = self.model or fingerprint
        return self.model == fingerprint

    def use_adapter(self, name: str | None) -> None:
        """Go on with an adapter, or with the model alone; what another one computed is forgotten."""
        if name != self.adapter:
            self.truncate(0)
            self.adapter, self.binding = name, None

    def join(self, holders: Holders | None) -> None:
        """Let a session know that its keys and values are here."""
        if holders is not None and holders is not self.holders:
            holders.add(self)
        self.holders = holders

    def read_source(self, token_ids: Sequence[int]) -> None:
        """Go on with the answer to a source text; what was computed for another one is forgotten."""
        if tuple(token_ids) != self.source_ids:
            self.truncate(0)
            self.source_ids, self.source_values, self.binding = tuple(token_ids), (), None

    def forget_bindings(self) -> None:
        """Forget what is bound to this memory, and keep what was computed."""
        self.settle()
        self.binding = None

    def leave_in(self, fetch: _Fetch, length: int) -> None:
        """Say that the newest of `length` tokens' keys and values are in another memory, from which `fetch` copies."""
        if self._fetch is None:
            self._settled = self.length
        self._fetch, self._until = fetch, length

    def settle(self) -> None:
        """Copy what is in another memory into the buffers."""
        if self._fetch is not None:
            self._fetch(self._buffers, self._settled, self._until)
            self._fetch = None  # then, as an interrupt leaves some of it to be copied

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all; what is cached stays.

        Raises:
            ContextLengthError: `length` is more than the model's context.
            OutOfMemoryError: there is no memory for it.
        """
        if length <= self.capacity:
            return
        limit = self.config.max_position_embeddings
        if length > limit:
            raise ContextLengthError(f"{length} tokens do not fit the model's context of {limit}. Shorten the prompt.")
        self.check_room(length)
        short_context = self.config.short_context
        if short_context is not None and length <= short_context:
            limit = min(limit, short_context)  # the graph turns by what there is room for
        grown, old = zeros(self.config, 1, grown_capacity(self.capacity, length, limit)), self.buffers
        self.binding = None
        try:
            for i, buffer in enumerate(grown):
                outgrown = old.pop(0)  # so that never more than one array is there twice
                buffer[:, :, self.filled(i)] = outgrown[:, :, self.filled(i)]
                give_back(outgrown)
            self.buffers = grown
        except BaseException:  # an interrupt, when some of what is cached is here and some there
            self.buffers = zeros(self.config, 1, 0)
            self.truncate(0)
            raise

    def check_room(self, length: int) -> None:
        """Check that this process can have the memory for `length` tokens in all, before any of them is computed.

        Raises:
            OutOfMemoryError: it cannot.
        """
        held = most_bytes(self.config, self.capacity) if self.capacity else 0
        wanted = most_bytes(self.config, length) - held
        available = available_memory(with_swap=True)
        if available is not None and wanted > available:
            raise OutOfMemoryError(
                f"{length} tokens take {wanted} more bytes of keys and values; {available} bytes of memory are left. "
                "Shorten the text, or free memory: prefixes.clear() of the model, or less beside it."
            )

    def truncate(self, length: int) -> None:
        """Forget all tokens after the first `length`.

        More are forgotten where the cache has no way back to that place: all where a window has slid past it, and those
        after the last snapshot where layers keep states.

        Raises:
            ConfigError: `length` is no number of tokens that it has.
        """
        if not is_whole(length) or not 0 <= length <= self.length:
            raise ConfigError(
                f"Cannot truncate a cache of {self.length} tokens to {length!r}; it must be a whole number of 0 to "
                f"{self.length}."
            )
        if self.capacity > (self.config.short_context or self.capacity) >= length:
            # LongRoPE: what is left is a short text again, whose keys turn otherwise.
            length, self.binding, self.buffers = 0, None, zeros(self.config, 1, 0)
        if self._window is not None and self.released and length < self.released + self._window:
            length = self.released = 0
        if self.has_states and length < self.length:
            self._go_back(length)
        else:
            self._cut(length)

    def is_outgrown_by(self, length: int) -> bool:
        """Tell whether what is cached must be computed again for a text of `length` tokens: with LongRoPE, every
        position of a text that is longer than the original context turns otherwise.
        """
        short_context = self.config.short_context
        return short_context is not None and 0 < self.length <= self.capacity <= short_context < length

    def common_prefix(self, token_ids: Sequence[int]) -> int:
        """Count how many of `token_ids`, from the first, the cache holds already."""
        for position, (cached, wanted) in enumerate(zip(self.token_ids, token_ids, strict=False)):
            if cached != wanted:
                return position
        return min(self.length, len(token_ids))

    def keep_beginning(self, token_ids: Sequence[int]) -> None:
        """Keep what the cache has of a prompt that is computed next, but for the prompt's last two tokens.

        A token that is computed alone takes another path through the attention, and gets other bits than in the whole
        prompt. Of a text that the prompt outgrows (LongRoPE) nothing is kept.
        """
        kept = 0 if self.is_outgrown_by(len(token_ids)) else self.common_prefix(token_ids)
        self.truncate(min(kept, max(0, len(token_ids) - 2)))

    def clone(self) -> KVCache:
        """Copy the cache: both copies go on independently."""
        copy = KVCache(self.config)
        copy.copy_from(self)
        return copy

    def copy_from(self, source: KVCache) -> None:
        """Hold what another cache of the model holds; what both begin with is not copied.

        Raises:
            ContextLengthError, OutOfMemoryError: as from `reserve`.
        """
        source.truncate(source.length)  # LongRoPE: forgets what was computed for a long text that is still short
        self.model = self.model or source.model
        self.use_adapter(source.adapter)
        self.join(source.holders)
        self.read_source(source.source_ids)
        self.source_values = source.source_values
        self.truncate(self.common_prefix(source.token_ids))
        self.reserve(source.length)
        try:
            for i, (target, buffer) in enumerate(zip(self.buffers, source.buffers, strict=True)):
                part = slice(max(self.length, source.filled(i).start or 0), source.length)
                part = part if i < self._first_state else slice(None)
                target[:, :, part] = buffer[:, :, part]
            self.snapshots = source.snapshots.copy()
            if source.released > self.length:
                self.released = source.released
            self.token_ids = list(source.token_ids)
        except BaseException:  # an interrupt: the states are the source's, and the tokens those that both begin with
            self.forget_states()
            raise

    def save(self, path: str | Path, fingerprint: str) -> None:
        """Write the cache to a file, atomically. `fingerprint` identifies the model; `load` compares it.

        Raises:
            ConfigError: an adapter computed it, or it is of an answer to a source text, neither of which the file has a
                place for; or the file cannot be written.
        """
        path = as_path(path)
        if self.adapter is not None:
            raise ConfigError(
                f"The adapter {self.adapter!r} computed this cache, which a file would give back as the model's own. "
                "ChatSession.save keeps a conversation with its adapter."
            )
        try:
            with atomic.replace_file(path) as file:
                self.write(file, fingerprint)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}. Name a file in a folder that is there.") from error

    def write(self, file: IO[bytes], fingerprint: str) -> None:
        """Write what `save` does to an open file; an OSError of it passes through.

        Raises:
            ConfigError: the model has an encoder.
        """
        if self.source_ids:
            raise ConfigError(
                "The cache of a model with an encoder is not saved: give the source text again, which is read in one "
                "step."
            )
        self.truncate(self.length)  # LongRoPE: as in copy_from
        described = parts_of(self.config, self.length)
        parts = {name: np.zeros(shape, type_) for name, (shape, type_) in described.items()}
        for i, (part, buffer) in enumerate(zip(chain.from_iterable(parts.values()), self.buffers, strict=True)):
            part[:, :, self.filled(i)] = buffer[:, :, self.filled(i)]
        SavedCache(token_ids=self.token_ids, released=self.released, parts=parts).write(file, fingerprint)

    @classmethod
    def load(cls, path: str | Path, config: ModelConfig, fingerprint: str) -> KVCache:
        """Read a saved cache.

        Raises:
            PackageError: the file is broken, or belongs to another model.
        """
        cache, path = cls(config), as_path(path)
        saved = SavedCache.read(path, config, fingerprint)
        token_ids, released = saved.token_ids, saved.released
        cache.reserve(len(token_ids))
        most = 0 if cache._window is None else max(0, len(token_ids) - cache._window)
        if not isinstance(released, int) or not 0 <= released <= most:
            raise PackageError(
                f"The saved cache {path} leaves out {released} of {len(token_ids)} tokens; the windows of this model "
                f"allow for {most}. {WITHOUT}"
            )
        cache.token_ids, cache.released = token_ids, released
        for i, (buffer, part) in enumerate(zip(cache.buffers, chain.from_iterable(saved.parts.values()), strict=True)):
            buffer[:, :, cache.filled(i)] = part[:, :, cache.filled(i)]
        return cache

"""PrefixCache: keys and values of beginnings that were computed before, for whoever begins the same way."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np

from edgelm.arguments import check_boolean, is_whole, of_class
from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm.memory.available_memory import available_memory
from edgelm.memory.cache_layout import BufferLayout, alike
from edgelm.memory.kv_batch import longest_row
from edgelm.memory.kv_cache import BLOCK, KeysOrValues, KVCache
from edgelm.memory.returned_memory import give_back
from edgelm.memory.snapshots import States

DEFAULT_BYTES = 256 << 20


class _Block:
    """What the buffers of a cache have of BLOCK tokens behind a certain beginning: [n, K, BLOCK, H] of those alike.

    parent: what it continues, weakly: blocks that are dropped free their memory at once, not when Python next looks for
    cycles. states: those behind the block, where there was a snapshot.
    """

    def __init__(self, parent: _Block | None, token_ids: tuple[int, ...], content: Sequence[KeysOrValues]) -> None:
        self._parent = None if parent is None else weakref.ref(parent)
        self.token_ids, self.content = token_ids, content
        self.children: dict[tuple[int, ...], _Block] = {}
        self.states: States = ()

    def drop(self) -> None:
        """Take the block off the one that it continues; an interrupt may have let that one go first."""
        parent = None if self._parent is None else self._parent()
        if parent is not None:
            del parent.children[self.token_ids]


class PrefixCache:
    """Keep what was computed, as a tree of blocks of 32 tokens, and copy it to where it is wanted again.

    max_bytes: of keys and values; the blocks that were used longest ago go first, and 0 keeps nothing. Where memory is
    short, no more is kept than stays free: a container that takes more than its limit is killed. answers: whether to
    keep what was computed for an answer too, which saves its prefill when the conversation goes on. A token computed
    alone differs by about 1e-6 from the same one computed with others, so what follows a kept answer may part, at near
    ties, from what follows a recomputed one; with `answers=False` reuse changes no bit, but with some experts
    (docs/guides/engine.md).

    Safe to share between threads. Each model has its own, as another one computes other keys and values of the same
    tokens. Copying 256 tokens takes milliseconds where computing them takes a quarter of a second
    (docs/results/batching.md).
    """

    def __init__(self, config: ModelConfig, max_bytes: int = DEFAULT_BYTES, *, answers: bool = True) -> None:
        of_class("config", config, ModelConfig, "which a model has as its config")
        check_boolean("answers", answers)
        if not is_whole(max_bytes) or max_bytes < 0:
            raise ConfigError(f"max_bytes is {max_bytes!r}; it must be a whole number of bytes, 0 for no cache.")
        self.max_bytes, self.answers = max_bytes, answers
        self._model: str | None = None  # the fingerprint of the one that it is of
        self._runs = alike(config)
        self._alike = [(buffer, count) for buffer, count in self._runs if isinstance(buffer, BufferLayout)]
        self._longest = longest_row(config)
        self._block_bytes, self._state_bytes = BLOCK * config.kv_bytes_per_token, config.state_bytes
        self._states = 0  # in how many blocks there are states
        self._lock, self._is_locked = threading.RLock(), False
        self._roots: dict[str | None, _Block] = {}  # by adapter: what one computed is of no use to another
        # The block used longest ago first. A block is always behind those that continue it, so the first has none.
        self._by_use: OrderedDict[_Block, None] = OrderedDict()
        self.reused_tokens = 0

    def __repr__(self) -> str:
        return f"<PrefixCache: {self.tokens} tokens, {self.bytes} of {self.max_bytes} bytes>"

    def of_model(self, config: ModelConfig, fingerprint: str) -> PrefixCache:
        """Return this, for a model whose beginnings it is to keep: the first one that asks, or one that is the same.

        Raises:
            ConfigError: it is another model's.
        """
        if self._model is None and alike(config) == self._runs:
            self._model = fingerprint
        if self._model != fingerprint:
            raise ConfigError(
                "prefixes is the PrefixCache of another model, whose keys and values are of no use to this one. Give "
                "each its own: model.prefixes = edgelm.PrefixCache(model.config)."
            )
        return self

    @property
    def bytes(self) -> int:
        """How much is kept."""
        return len(self._by_use) * self._block_bytes + self._states * self._state_bytes

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return len(self._by_use) * BLOCK

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Have the blocks alone; False: this thread has them already. Python's garbage collector, which comes at any
        time, may end an answer that nobody reads to its end, and that keeps what it has.
        """
        with self._lock:
            is_alone, self._is_locked = not self._is_locked, True
            try:
                yield is_alone
            finally:
                self._is_locked = not is_alone

    def clear(self) -> None:
        """Forget everything."""
        with self._locked():
            self._roots.clear()
            self._by_use.clear()
            self._states = 0

    def forget_adapter(self, name: str) -> None:
        """Forget what an adapter computed, before another one may get its name."""
        with self._locked():
            blocks = [self._roots.pop(name, _Block(None, (), []))]
            while blocks:
                block = blocks.pop()
                self._by_use.pop(block, None)
                if block.states:
                    self._states -= 1
                blocks += block.children.values()

    def fill(self, cache: KVCache, token_ids: Sequence[int]) -> int:
        """Make `cache` hold a beginning of a prompt, from itself and from here, but for its last two tokens at least;
        return its length.
        """
        cache.keep_beginning(token_ids)
        self.extend(cache, token_ids)
        return cache.length

    def extend(self, cache: KVCache, token_ids: Sequence[int]) -> int:
        """Add to `cache`, which holds a beginning of a prompt, what is here of the rest; return how many tokens.

        With states, blocks are used up to the last one that has some. Where more blocks follow, `cache.branch` is their
        end: with a snapshot there, the next prompt that begins so can use them all.
        """
        most = (len(token_ids) - 2) // BLOCK if len(token_ids) <= self._longest else 0
        if most * BLOCK <= cache.length:
            return 0
        with self._locked():
            path = self._path(self._root(cache), token_ids, most)
            if cache.has_states:
                cache.branch = len(path) * BLOCK
                path = path[: max((i for i, block in enumerate(path, 1) if block.states), default=0)]
            self._use(path)
        start, end = cache.length, len(path) * BLOCK
        if end <= start:
            return 0
        cache.reserve(end)
        try:
            for i in range(start // BLOCK, len(path)):
                for part, buffer in zip(chain.from_iterable(path[i].content), cache.buffers, strict=False):
                    buffer[0, :, i * BLOCK : (i + 1) * BLOCK] = part
                cache.token_ids.extend(token_ids[cache.length : (i + 1) * BLOCK])
                cache.slide()
            if cache.has_states:
                cache.go_on_from(path[-1].states)
        except BaseException:  # an interrupt: keys and values were added, and the states are those of before
            cache.forget_states()
            raise
        self.reused_tokens += end - start
        return end - start

    def keep(self, cache: KVCache, prompt_tokens: int, *, is_spent: bool = False) -> None:
        """Keep what `cache` holds: the prompt, whose length is given, and the answer, where answers are kept.

        is_spent: nobody goes on with the cache: what is kept of it is given back while it is copied, so that a long
        answer does not take twice its memory at its end.
        """
        length = cache.length if self.answers else min(cache.length, prompt_tokens)
        if self._block_bytes > self.max_bytes or cache.capacity > self._longest:
            return
        budget = self._budget()
        if cache.holders is not None:
            cache.holders.add(self)
        # The end of a text that is beyond the budget is left out: it would be copied with each piece, and dropped.
        blocks = min(length // BLOCK, max(0, (budget - self._state_bytes) // self._block_bytes))
        snapshots = {
            place // BLOCK: states for place, states in cache.snapshots.states.items() if place <= blocks * BLOCK
        }
        if cache.has_states:
            blocks = max(snapshots, default=0)  # blocks after the last snapshot are of no use
        with self._locked() as is_alone:
            if not is_alone:
                return
            root = self._root(cache)
            path = self._path(root, cache.token_ids, blocks)
            starts = range(len(path) * BLOCK, blocks * BLOCK, BLOCK)
            if starts and starts[0] < cache.released:
                starts = range(0)  # those blocks were dropped here, and the cache has given back what they held
            try:
                contents = self._copies(cache, starts, is_spent=is_spent)
            except MemoryError:
                return  # no answer should fail for want of a copy
            for start, content in zip(starts, contents, strict=True):
                parent = path[-1] if path else root
                ids = tuple(cache.token_ids[start : start + BLOCK])
                block = parent.children[ids] = _Block(parent, ids, content)
                path.append(block)
            if len(path) == blocks:
                for count, states in snapshots.items():
                    if not path[count - 1].states:
                        self._states += 1
                    path[count - 1].states = states
            if is_spent:
                cache.truncate(0)
            self._use(path)
            self._forget_oldest(budget)

    def slide(self, cache: KVCache, prompt_tokens: int) -> None:
        """Let a cache give back what has left its windows, and keep that here first; arguments are as in `keep`."""
        if cache.is_to_slide:
            self.keep(cache, prompt_tokens)
            cache.slide()

    def _copies(self, cache: KVCache, starts: range, *, is_spent: bool) -> list[list[KeysOrValues]]:
        """Copy the blocks of a cache that begin at some tokens; what is spent of it is given back on the way."""
        contents = [
            [np.empty((count, *buffer.shape(1, BLOCK)[1:]), buffer.type) for buffer, count in self._alike]
            for _ in starts
        ]
        places = [list(chain.from_iterable(content)) for content in contents]
        for i, buffer in enumerate(cache.buffers):
            for start, parts in zip(starts, places, strict=True):
                if i < len(parts):
                    parts[i][:] = buffer[0, :, start : start + BLOCK]
            if is_spent:
                give_back(buffer)
        return contents

    def _budget(self) -> int:
        free = available_memory(with_swap=True)
        return self.max_bytes if free is None else min(self.max_bytes, (self.bytes + free) // 2)

    def _forget_oldest(self, budget: int) -> None:
        """Forget the blocks that were used longest ago, as many as are beyond the budget."""
        while self.bytes > budget:
            block, _ = self._by_use.popitem(last=False)
            block.drop()
            if block.states:
                self._states -= 1

    def _root(self, cache: KVCache) -> _Block:
        return self._roots.setdefault(cache.adapter, _Block(None, (), []))

    def _path(self, root: _Block, token_ids: Sequence[int], most: int) -> list[_Block]:
        """Return the blocks that hold the beginning of `token_ids`, `most` of them at the most."""
        path: list[_Block] = []
        block = root
        for i in range(most):
            found = block.children.get(tuple(token_ids[i * BLOCK : (i + 1) * BLOCK]))
            if found is None:
                break
            path.append(block := found)
        return path

    def _use(self, path: list[_Block]) -> None:
        for block in reversed(path):
            self._by_use[block] = None
            self._by_use.move_to_end(block)

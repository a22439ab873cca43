"""KVBatch: the keys and values of several sequences in one buffer, so that one step computes them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError
from edgelm.memory.cache_layout import cache_layout
from edgelm.memory.kv_cache import KeysOrValues, KVCache, grown_capacity, zeros
from edgelm.memory.mirrored_memory import MirroredBuffers, Row
from edgelm.memory.returned_memory import give_back

# Rows of a step with guessed tokens: eight take 2.5 times as long as one (docs/results/batching.md), and a guess gains
# less with each.
MOST_SHOWN = 16


def longest_row(config: ModelConfig) -> int:
    """Return how many tokens a row may have: the model's context, or what all rows turn alike in (LongRoPE)."""
    return config.short_context or config.max_position_embeddings


class KVRow(KVCache):
    """A KV cache that lives in one row of a batch: its buffers [1, K, C, H] are views on the batch's memory."""

    def __init__(self, config: ModelConfig, batch: KVBatch, place: int) -> None:
        super().__init__(config)
        self._batch = batch
        self.move_to(place)

    def move_to(self, place: int) -> None:
        """Stand for another row of the batch; what is in it is not moved."""
        self.place = place
        self.buffers = [buffer[place : place + 1] for buffer in self._batch.buffers]
        self.binding = None

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in every row of the batch, as `KVBatch.reserve`."""
        self._batch.reserve(length)


class KVBatch:
    """Hold what KVCache does, for several sequences.

    `buffers` are arrays as there, [R, K, C, H] of keys or values, with R rows of which the first `len(rows)` are in
    use. The first `active` rows are the ones that a step computes together; rows behind them are still being filled.
    Rows never have gaps between them: what leaves is replaced by the last of its kind, which copies that row's tokens
    once and saves every later step the empty row.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.rows: list[KVRow] = []
        self.active = 0
        self._no_buffers = zeros(config, 0, 0)
        self.buffers = [*self._no_buffers]
        self._mirrors = self._is_refused = False
        self._mirrored: MirroredBuffers | None = None  # the memory of the buffers, where rows may be shown
        # The session's: by how many rows a step has, the ranks of their adapters, and whether they are `shown`; what
        # they all write their logits into.
        self.bindings: dict[tuple[int, range, bool], Any] = {}
        self.logits: Any = None

    @property
    def capacity(self) -> int:
        """How many tokens each row has room for."""
        return int(self.buffers[0].shape[2])

    def forget_bindings(self) -> None:
        """Forget what is bound to this memory."""
        self.bindings.clear()
        self.logits = None

    def mirror(self) -> bool:
        """Have memory whose rows may be `shown` from now on; return whether the system has it. What is cached stays."""
        if not self._mirrors and not self._is_refused:
            self._mirrors = True
            if new := self._mirrored_buffers(len(self.buffers[0]), self.capacity):
                self._move_to(new)
        return self._mirrors

    def shown(self, order: Sequence[int]) -> list[KeysOrValues] | None:
        """Return buffers [len(order), K, C, H] that show these rows of a batch that mirrors, up to MOST_SHOWN, until
        the next call; None where the system has no memory for it any more.

        A row may be there several times: what is written into one is in all.
        """
        try:
            return None if self._mirrored is None else self._mirrored.show(order)
        except OSError:
            self._mirrors, self._is_refused = False, True
            self._resize(len(self.buffers[0]), self.capacity)
            return None

    def add(self) -> KVRow:
        """Return a new row, empty and not yet active.

        Raises:
            OutOfMemoryError: there is no memory for it.
        """
        places = len(self.buffers[0])
        if len(self.rows) == places:
            self._resize(max(1, 2 * places), self.capacity)
        row = KVRow(self.config, self, len(self.rows))
        row.begin_states()
        self.rows.append(row)
        return row

    def activate(self, row: KVRow) -> None:
        """Let a row that is filled take part in the steps."""
        other = self.rows[self.active]
        if other is not row:
            row.settle()
            other.settle()
            for i, buffer in enumerate(self.buffers):
                part, others = row.filled(i), other.filled(i)
                aside = buffer[row.place, :, part].copy()
                buffer[row.place, :, others] = buffer[other.place, :, others]
                buffer[other.place, :, part] = aside
            self.rows[row.place], self.rows[other.place] = other, row
            place = row.place
            row.move_to(other.place)
            other.move_to(place)
        self.active += 1

    def remove(self, row: KVRow) -> None:
        """Forget a row. Its memory is another row's from now on, or given back with the last one."""
        row.use_adapter(None)  # a step may refer to the row to its end, when its adapter is unloaded already
        hole = row.place
        if hole < self.active:
            self.active -= 1
            self._fill(hole, self.active)
            hole = self.active
        self._fill(hole, len(self.rows) - 1)
        self.rows.pop()
        if not self.rows:
            self.clear()

    def clear(self) -> None:
        """Forget all rows, and give their memory back; takes none, as there may be none."""
        self.rows, self.active = [], 0
        self.buffers, self._mirrored = [*self._no_buffers], None
        self._is_refused = False  # the next requests may find memory for it
        self.forget_bindings()

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in every row; what is cached stays.

        Raises:
            ContextLengthError: `length` is more than a row may have.
            OutOfMemoryError: there is no memory for it.
        """
        limit = longest_row(self.config)
        if length > limit:
            raise ContextLengthError(f"{length} tokens do not fit the {limit} of a batch's row. Shorten the prompt.")
        if length > self.capacity:
            self._resize(len(self.buffers[0]), grown_capacity(self.capacity, length, limit))

    def _fill(self, hole: int, place: int) -> None:
        if hole == place:
            return
        row = self.rows[hole] = self.rows[place]
        row.settle()
        for i, buffer in enumerate(self.buffers):
            buffer[hole, :, row.filled(i)] = buffer[place, :, row.filled(i)]
        row.move_to(hole)

    def _resize(self, places: int, capacity: int) -> None:
        self._move_to(self._mirrored_buffers(places, capacity) or zeros(self.config, places, capacity))

    def _move_to(self, new: list[KeysOrValues]) -> None:
        # Nothing may keep the old memory, and only one array is there twice.
        old = self.buffers
        self.bindings.clear()
        for row in self.rows:
            row.settle()
            row.buffers, row.binding = [], None
        for i, grown in enumerate(new):
            outgrown = old.pop(0)
            for row in self.rows:
                grown[row.place, :, row.filled(i)] = outgrown[row.place, :, row.filled(i)]
            give_back(outgrown)
        self.buffers = new
        for row in self.rows:
            row.move_to(row.place)

    def _mirrored_buffers(self, places: int, capacity: int) -> list[KeysOrValues]:
        """Return memory whose rows may be shown; none where the batch does not mirror, or the system refuses."""
        self._mirrored = None
        if not (self._mirrors and places and capacity):
            return []
        rows = [Row(buffer.shape(1, capacity)[1:], buffer.type) for buffer in cache_layout(self.config)]
        try:
            self._mirrored = MirroredBuffers(rows, places, MOST_SHOWN)
        except OSError:
            self._mirrors, self._is_refused = False, True
            return []
        return list(self._mirrored.buffers)

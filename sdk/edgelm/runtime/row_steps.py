"""The next tokens of the rows of a batch, and those that are guessed after them, in one call of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.memory.holders import Holders
from edgelm.memory.kv_batch import MOST_SHOWN, KVBatch
from edgelm.memory.kv_cache import KeysOrValues
from edgelm.runtime.binding import Graph, InPlaceBinding, forget_half_written

# Each number of rows has its own for any two adapters that are the first and the last in the bank of those in use: of
# 16 adapters and 16 rows 2,192, of SmolLM2-135M 0.16 MB each.
_MOST_BINDINGS = 256


def step_rows(
    graph: Graph,
    holders: Holders,
    token_ids: Sequence[int],
    batch: KVBatch,
    guesses: Sequence[Sequence[int]],
) -> NDArray[np.float32]:
    """Compute what DecoderSession.forward_rows does, by a graph that works in place; `holders` get to know the batch.

    A guess is a row too, over the memory of the row that it is of: the operator writes the keys and values of all rows
    before it computes the attention of the first (`single_steps`).
    """
    rows = batch.rows[: len(token_ids)]
    ids, order = list(token_ids), list(range(len(rows)))
    lengths = [len(row.token_ids) + 1 for row in rows]
    for place, guess in enumerate(guesses):
        ids += guess
        order += [place] * len(guess)
        lengths += range(lengths[place] + 1, lengths[place] + len(guess) + 1)
    batch.reserve(max(lengths))
    shown = batch.shown(order) if len(order) > len(rows) else None
    count = len(rows) if shown is None else len(order)
    binding = _bound(graph, holders, batch, [rows[place].adapter for place in order[:count]], shown)
    try:
        logits_NV = binding.step(ids[:count], lengths[:count])
    except BaseException as error:
        for row in rows:
            forget_half_written(row, error)
        raise
    for row, id_ in zip(rows, token_ids, strict=True):
        row.extend((id_,))
    if shown is not None:
        for row, guess in zip(rows, guesses, strict=True):
            row.extend(guess)
    return logits_NV


def _bound(
    graph: Graph,
    holders: Holders,
    batch: KVBatch,
    adapters: Sequence[str | None],
    shown: Sequence[KeysOrValues] | None,
) -> InPlaceBinding:
    """Return the graph bound to what is shown of a batch, or to its first rows: as many as there are adapters."""
    count = len(adapters)
    key = count, graph.adapters.covering(adapters), shown is not None
    binding: InPlaceBinding | None = batch.bindings.get(key)
    if binding is None:
        if batch.logits is None or len(batch.logits) < count:  # for all steps; takes memory as it is written
            batch.forget_bindings()
            batch.logits = np.zeros((max(count, MOST_SHOWN), graph.config.vocab_size), graph.facts.logits_type)
        if len(batch.bindings) >= _MOST_BINDINGS:
            batch.bindings.clear()
        buffers = shown or [buffer[:count] for buffer in batch.buffers]
        binding = batch.bindings[key] = InPlaceBinding(graph, buffers, adapters, logits=batch.logits)
        holders.add(batch)
    binding.choose(adapters)
    return binding

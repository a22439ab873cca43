"""ChatRows: rows of whole conversations for fine-tuning, with the loss on what the assistant says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from edgelm.errors import ConfigError, DataError
from edgelm_training.conversations.chats import Chats
from edgelm_training.rows.batches import NO_TARGET, PADDING, Batch, describe_places
from edgelm_training.rows.row_order import row_at


class ChatRows:
    """Pack whole conversations into rows of `sequence_length` tokens, and shuffle the rows anew in each epoch.

    Which conversations share a row is the same in each epoch: best fit, the longest first, which leaves little
    padding. Conversations do not see each other (`Batch.documents_BT`), and padding has no targets. What a row holds
    depends on the chats, `sequence_length`, `seed` and its number alone, as in `Batches`.

    A conversation of more than `sequence_length` tokens is left out, since its beginning alone would teach answers
    without an end; `left_out` has the numbers of those.

    kinds, chats_each: what a user calls one and several, and how many conversations one of them is.

    Raises:
        ConfigError: sequence_length is below 2.
        DataError: there are no chats, or none of them fits.
    """

    kinds = ("conversation", "conversations")
    chats_each = 1

    def __init__(self, chats: Chats, *, sequence_length: int, seed: int) -> None:
        if sequence_length < 2:
            raise ConfigError(f"sequence_length is {sequence_length}; it must be 2 or more.")
        if not len(chats):
            raise DataError("There are no conversations in this split.")
        self.chats = chats
        self.sequence_length = sequence_length
        self.seed = seed
        lengths = np.diff(chats.ends, prepend=0)
        self.left_out = tuple(np.flatnonzero(lengths > sequence_length).tolist())
        if len(self.left_out) == len(chats):
            raise DataError(
                f"No conversation fits into sequence_length {sequence_length}; the shortest has {lengths.min()} tokens."
            )
        self._rows = _pack(lengths.tolist(), sequence_length)
        self.rows_per_epoch = len(self._rows)

    def batch(self, first: int, count: int) -> Batch:
        """Return rows first to first + count - 1 of the endless sequence; row `rows_per_epoch` begins epoch 1."""
        rows = [self._conversations(first + place) for place in range(count)]
        return batch_of_chats(self.chats, rows, self.sequence_length)

    def describe(self, row: int) -> str:
        """Name the conversations of a row: files and lines."""
        return ", ".join(describe_places(self.chats.places[number] for number in self._conversations(row)))

    def _conversations(self, row: int) -> Sequence[int]:
        return self._rows[row_at(row, self.rows_per_epoch, seed=self.seed)]


def batch_of_chats(chats: Chats, rows: Sequence[Sequence[int]], length: int) -> Batch:
    """Return rows of the conversations of these numbers, one after another, padded to `length`."""
    ids_BT = np.zeros((len(rows), length), np.int64)
    targets_BT, documents_BT = np.full_like(ids_BT, NO_TARGET), np.full_like(ids_BT, PADDING)
    for place, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            ids, learned = chats[number]
            stop = start + len(ids)
            ids_BT[place, start:stop] = ids
            targets_BT[place, start : stop - 1] = np.where(learned[1:], ids[1:], NO_TARGET)
            documents_BT[place, start:stop] = number
            start = stop
    return Batch(
        ids_BT=torch.from_numpy(ids_BT),
        targets_BT=torch.from_numpy(targets_BT),
        documents_BT=torch.from_numpy(documents_BT),
    )


def _pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put each length into the fullest row that has room for it, the longest first (best-fit decreasing).

    Source: Johnson, "Near-optimal bin packing algorithms", 1973: at most 11/9 of the fewest rows.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(size + 1)]
    # Bit n is set where a row has room for n tokens: the smallest that suffices is found without a search.
    rooms = 0
    for number in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[number]
        if length > size:
            continue
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = size, len(rows)
            rows.append([])
        rows[row].append(number)
        left = room - length
        with_room[left].append(row)
        rooms |= 1 << left
    return rows

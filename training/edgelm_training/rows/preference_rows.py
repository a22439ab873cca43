"""PreferenceRows: pairs of a better and a worse answer to one prompt, as a pure function of the row."""

from __future__ import annotations

import numpy as np

from edgelm.errors import DataError
from edgelm_training.conversations.chats import Chats
from edgelm_training.rows.batches import Batch, describe_places
from edgelm_training.rows.chat_rows import batch_of_chats
from edgelm_training.rows.row_order import row_at


class PreferenceRows:
    """Give each pair as a row of its own, shuffled anew in each epoch.

    A batch has two rows of tokens for each pair: the conversation with the better answer, then the one with the worse.
    They are padded to the longest of the batch. Only the answers have targets.

    chats: conversation 2i is the better one of pair i, 2i + 1 the worse. A pair with a conversation of more than
    `sequence_length` tokens is left out; `left_out` has the numbers of those. kinds, chats_each: as of `ChatRows`.

    Raises:
        DataError: there are no pairs, or none of them fits.
    """

    kinds = ("pair", "pairs")
    chats_each = 2

    def __init__(self, chats: Chats, *, sequence_length: int, seed: int) -> None:
        self.chats, self.sequence_length, self.seed = chats, sequence_length, seed
        longest = np.diff(chats.ends, prepend=0).reshape(-1, 2).max(1)
        if not len(longest):
            raise DataError("There are no preferences in this split.")
        self.left_out = tuple(np.flatnonzero(longest > sequence_length).tolist())
        self._pairs = np.flatnonzero(longest <= sequence_length).tolist()
        if not self._pairs:
            raise DataError(
                f"No pair fits into sequence_length {sequence_length}; the shortest needs {longest.min()} tokens."
            )
        self.rows_per_epoch = len(self._pairs)

    def batch(self, first: int, count: int) -> Batch:
        """Return pairs first to first + count - 1 of the endless sequence, two rows each."""
        chats = [2 * self._pair(first + place) + side for place in range(count) for side in (0, 1)]
        longest = max(len(self.chats[number][0]) for number in chats)
        return batch_of_chats(self.chats, [(number,) for number in chats], longest)

    def describe(self, row: int) -> str:
        """Name the file and the line of a pair."""
        return ", ".join(describe_places([self.chats.places[2 * self._pair(row)]]))

    def _pair(self, row: int) -> int:
        return self._pairs[row_at(row, self.rows_per_epoch, seed=self.seed)]

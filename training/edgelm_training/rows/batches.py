"""Batches: rows of tokens for training, as a pure function of their place in an endless shuffled sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgelm.errors import ConfigError, DataError
from edgelm_training.rows.row_order import row_order
from edgelm_training.texts.shards import Shards

# What cross_entropy ignores.
NO_TARGET = -100
# The document of tokens that fill a row up.
PADDING = -1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of tokens; B rows of T tokens, int64, on the CPU.

    ids_BT: what the model reads. targets_BT: the next token that each position is to predict, NO_TARGET for none.
    documents_BT: the document of each token; neighbours of one number may see each other, others never. PADDING has no
    targets. None: each row is one document, which attention computes faster. sources_BS: what an encoder reads for each
    row, with PADDING behind it; None: the model has no encoder.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    documents_BT: Tensor | None
    sources_BS: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What a model is called with."""
        texts = (self.ids_BT, self.documents_BT)
        return texts if self.sources_BS is None else (*texts, self.sources_BS)

    def to(self, device: torch.device, *, short_context: int | None = None) -> Batch:
        """Return the batch on that device, without documents where each row is one, with or without padding behind it.

        Attention only looks back, so padding at the end of a row changes nothing before it. With LongRoPE it would: in
        a row of more than `short_context` tokens, it makes a short text a long one.
        """
        documents_BT = self.documents_BT
        if documents_BT is not None:
            follows_BT = documents_BT[:, 1:] == documents_BT[:, :-1]
            if short_context is None or self.ids_BT.shape[1] <= short_context:
                follows_BT |= documents_BT[:, 1:] == PADDING
            if bool(follows_BT.all()):
                documents_BT = None
        return Batch(
            ids_BT=self.ids_BT.to(device, non_blocking=True),
            targets_BT=self.targets_BT.to(device, non_blocking=True),
            documents_BT=None if documents_BT is None else documents_BT.to(device, non_blocking=True),
            sources_BS=None if self.sources_BS is None else self.sources_BS.to(device, non_blocking=True),
        )


class Batches:
    """Cut the documents of a split into rows of `sequence_length` tokens, and shuffle the rows anew in each epoch.

    The documents stand one after another and rows are cut without regard to them, so that no token is padding and each
    one is a target once an epoch (a remainder shorter than a row excepted, another one each time). Each epoch cuts
    at other places.

    What a row holds depends on the shards, `sequence_length`, `seed` and its number alone. So any number of processes
    can take their rows by number, and a run resumes exactly with nothing saved but how many rows it has seen.

    At the last token of a document, the target is the token that ends it, even where that token already begins the next
    document (`Shards`); what comes after an end token is never a target, since nothing says what it will be.

    A split with fewer tokens than one row gives one row with padding: tokens without targets, in a document apart.

    Raises:
        ConfigError: sequence_length is below 1.
        DataError: the split has no tokens.
    """

    def __init__(self, shards: Shards, *, sequence_length: int, seed: int) -> None:
        if sequence_length < 1:
            raise ConfigError(f"sequence_length is {sequence_length}; it must be 1 or more.")
        if not shards.num_tokens:
            raise DataError(f"{shards.folder} has no documents in its {shards.split} split.")
        self.shards = shards
        self.sequence_length = sequence_length
        self.seed = seed
        self.rows_per_epoch = max(1, shards.num_tokens // sequence_length)

    def batch(self, first: int, count: int) -> Batch:
        """Return rows first to first + count - 1 of the endless sequence; row `rows_per_epoch` begins epoch 1.

        Raises:
            DataError: a token is none of the vocabulary; the shards were changed.
        """
        rows = [self._row(row) for row in range(first, first + count)]
        ids_BT, targets_BT, documents_BT = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
        return Batch(ids_BT=ids_BT, targets_BT=targets_BT, documents_BT=documents_BT)

    def describe(self, row: int) -> str:
        """Name the documents of a row: files and lines."""
        _, documents = self._read(row)
        numbers = dict.fromkeys(documents[: self.sequence_length].tolist())
        return ", ".join(describe_places(self.shards.place(number) for number in numbers))

    def _row(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        ids, documents = self._read(row)
        targets = ids[1:].copy()
        if self.shards.end_token_ids:
            targets[documents[1:] != documents[:-1]] = NO_TARGET
        if missing := self.sequence_length + 1 - len(ids):
            ids, documents = np.pad(ids, (0, missing)), np.pad(documents, (0, missing), constant_values=PADDING)
            targets = np.pad(targets, (0, missing), constant_values=NO_TARGET)
        return ids[:-1], targets, documents[:-1]

    def _read(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Read a row's tokens and the one after them."""
        epoch, place = divmod(row, self.rows_per_epoch)
        if self.shards.num_tokens < self.sequence_length:
            return self.shards.read(0, self.shards.num_tokens + 1)
        order = row_order(self.rows_per_epoch, seed=self.seed, epoch=epoch)
        start = (order.offset + order[place] * self.sequence_length) % self.shards.num_tokens
        return self.shards.read(start, self.sequence_length + 1)


def describe_places(places: Iterable[tuple[str, int]]) -> list[str]:
    """Write files and lines, those of one file together: `a.txt:1`, `b.jsonl:17-29`."""
    lines: dict[str, list[int]] = {}
    for path, line in places:
        lines.setdefault(path, []).append(line)
    return [
        f"{path}:{min(numbers)}" if len(numbers) == 1 else f"{path}:{min(numbers)}-{max(numbers)}"
        for path, numbers in lines.items()
    ]

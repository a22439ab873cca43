"""RowOrder: the shuffled order of an epoch's rows, computed for any place of it without a table."""

from __future__ import annotations

import hashlib
from functools import lru_cache

_ROUNDS = 6  # of 4 bytes of the digest each; the last 8 are the offset
_WORD = (1 << 64) - 1


class RowOrder:
    """Permute the numbers 0 to size - 1; a pure function of (seed, epoch), the same on every machine and version.

    A Feistel network whose halves are no wider than needed, and which walks on from what lies beyond `size` (cycle
    walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It needs no memory, unlike numpy's
    permutation, which moreover may change between numpy's versions: a run must resume after an upgrade.
    """

    def __init__(self, size: int, *, seed: int, epoch: int) -> None:
        self._size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        digest = hashlib.sha256(f"edgelm rows {seed} {epoch}".encode()).digest()
        self._keys = [int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(_ROUNDS)]
        # A number of the epoch's own, for whoever cuts the rows.
        self.offset = int.from_bytes(digest[24:], "little")

    def __getitem__(self, place: int) -> int:
        """Return the row at `place`; beyond the last place there is none (IndexError)."""
        if not 0 <= place < self._size:
            raise IndexError(f"Place {place} of {self._size} rows.")
        value = self._permute(place)
        while value >= self._size:
            value = self._permute(value)
        return value

    def _permute(self, value: int) -> int:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return left << self._half | right


@lru_cache(maxsize=8)
def row_order(size: int, *, seed: int, epoch: int) -> RowOrder:
    """Return the order of an epoch; the last few are kept."""
    return RowOrder(size, seed=seed, epoch=epoch)


def row_at(place: int, rows_per_epoch: int, *, seed: int) -> int:
    """Return which of an epoch's rows stands at a place of the endless sequence, in which epochs follow each other."""
    epoch, place = divmod(place, rows_per_epoch)
    return row_order(rows_per_epoch, seed=seed, epoch=epoch)[place]


def _mix(value: int) -> int:
    """Scramble 64 bits: the finalizer of SplitMix64 (Steele, Lea, Flood, 2014)."""
    value &= _WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31

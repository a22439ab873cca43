"""Pairs of pieces that make a piece: all ways to cut a text of a vocabulary in two texts of the same vocabulary.

A vocabulary of 262,144 pieces can be cut at more than a million places. So each part is known by a number: a polynomial
of its characters modulo 2**64, which for all beginnings and all ends of a piece follows from a few sums.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]
Places = NDArray[np.int64]
_AT_ONCE = 1 << 12  # pieces, whose numbers stay in the processor's cache


def pairs_of_pieces(texts: Sequence[str], most: int) -> NDArray[np.int32]:
    """Return the pairs [3, P]: rows of the places of the whole, its left and its right part.

    All texts differ, and none is empty.

    Raises:
        ValueError: there are more than `most`, or two parts have the same number, as honest ones have once in 10**8
            trials.
    """
    pieces = _Pieces(texts)
    some, count = [np.zeros((3, 0), np.int32)], 0
    for first in range(0, len(texts), _AT_ONCE):
        some.append(pieces.pairs(first, min(first + _AT_ONCE, len(texts))))
        count += some[-1].shape[1]
        if count > most:
            raise ValueError(f"more than {most} pairs of its pieces make a piece")
    return np.concatenate(some, axis=1)


class _Pieces:
    """The characters of all pieces, one behind the other, and a hash table of their numbers."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        self._lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._starts = np.cumsum(self._lengths) - self._lengths
        multiplier = _multiplier()
        longest = int(self._lengths.max(initial=0)) + 1
        self._powers, self._inverses = (
            np.multiply.accumulate(np.full(longest, factor, np.uint64))
            for factor in (multiplier, pow(multiplier, -1, 1 << 64))
        )
        self._numbers = np.zeros(len(texts), np.uint64)
        for first in range(0, len(texts), _AT_ONCE):
            last = min(first + _AT_ONCE, len(texts))
            self._numbers[first:last] = self._sums(first, last)[1]
        ordered = np.sort(self._numbers)
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError("two pieces have the same number")
        bits = max(8, (4 * len(texts)).bit_length())
        self._shift, self._slots = np.uint64(64 - bits), np.full(1 << bits, -1, np.int32)
        self._fill(np.arange(len(texts)))

    def _sums(self, first: int, last: int) -> tuple[Numbers, Numbers, Places]:
        """Return the numbers of the beginnings before each character, those of the pieces, and each one's place."""
        lengths, starts = self._lengths[first:last], self._starts[first:last] - self._starts[first]
        total = int(lengths.sum())
        places = np.arange(total) - np.repeat(starts, lengths)
        begin = int(self._starts[first])
        terms = self._characters[begin : begin + total] * self._powers[places]
        sums = np.zeros(total + 1, np.uint64)
        np.cumsum(terms, out=sums[1:])
        return sums[:-1] - np.repeat(sums[starts], lengths), sums[starts + lengths] - sums[starts], places

    def pairs(self, first: int, last: int) -> NDArray[np.int32]:
        """Return the pairs that make the pieces from `first` to `last`, as rows of whole, left and right."""
        beginnings, numbers, places = self._sums(first, last)
        wholes = np.repeat(np.arange(first, last), self._lengths[first:last])
        lefts = np.full(len(places), -1)
        inside = np.flatnonzero(places)
        lefts[inside] = self._find(beginnings[inside])
        cuts = np.flatnonzero(lefts >= 0)
        whole, left, place = wholes[cuts], lefts[cuts], places[cuts]
        right = self._find((numbers[whole - first] - beginnings[cuts]) * self._inverses[place - 1])
        found = right >= 0
        whole, left, right, place = whole[found], left[found], right[found], place[found]
        self._check(whole, left, right, place)
        return np.stack((whole, left, right)).astype(np.int32)

    def _check(self, whole: Places, left: Places, right: Places, place: Places) -> None:
        """Compare the characters of parts that were found by their numbers with those that they stand for."""
        rest, starts = self._lengths[whole] - place, self._starts[whole]
        same_lengths = (self._lengths[left] == place) & (self._lengths[right] == rest)
        if not same_lengths.all() or not all(
            np.array_equal(self._spans(self._starts[part], length), self._spans(start, length))
            for part, start, length in ((left, starts, place), (right, starts + place, rest))
        ):
            raise ValueError("a part has the number of another piece")

    def _spans(self, starts: Places, lengths: Places) -> NDArray[np.uint32]:
        behind = np.cumsum(lengths)
        characters: NDArray[np.uint32] = self._characters[
            np.repeat(starts - behind + lengths, lengths) + np.arange(lengths.sum())
        ]
        return characters

    def _fill(self, pieces: Places) -> None:
        """Put pieces into the table: each at the first bits of its number, or at the next free slot."""
        slots = (self._numbers[pieces] >> self._shift).astype(np.int64)
        while len(pieces):
            free = self._slots[slots] < 0
            self._slots[slots[free]] = pieces[free]  # of several for one slot, one stays
            waiting = self._slots[slots] != pieces
            pieces, slots = pieces[waiting], (slots[waiting] + 1) % len(self._slots)

    def _find(self, numbers: Numbers) -> Places:
        """Return the pieces that have these numbers; -1 where none has."""
        slots = (numbers >> self._shift).astype(np.int64)
        found = self._slots[slots].astype(np.int64)
        wrong = np.flatnonzero((found >= 0) & (self._numbers[found] != numbers))
        while len(wrong):
            slots[wrong] = (slots[wrong] + 1) % len(self._slots)
            found[wrong] = self._slots[slots[wrong]]
            wrong = wrong[(found[wrong] >= 0) & (self._numbers[found[wrong]] != numbers[wrong])]
        return found


def _multiplier() -> int:
    return secrets.randbits(64) | 1  # odd, so that it has an inverse; secret, so that no file is written to collide

"""Snapshots: copies of what is known at some places of a text, to go back to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

States = Sequence[NDArray[Any]]

_MOST = 4  # so that a long text does not take many times its memory
_MOST_PASSING = 2


class Snapshots:
    """The states at some places of one text, by how many tokens are before them; nobody writes to them.

    Where there are too many, the one with the nearest neighbours is dropped, but never the last one. Those in an answer
    ("passing") are counted apart: the last two of them stay.
    """

    def __init__(self) -> None:
        self.states: dict[int, States] = {}
        self._passing: list[int] = []

    def add(self, place: int, states: States, *, is_passing: bool = False) -> None:
        """Keep the states of a place behind the others; is_passing: it is in an answer."""
        if place in self.states:
            return
        self.states[place] = states
        if is_passing:
            self._passing.append(place)
            if len(self._passing) > _MOST_PASSING:
                self.states.pop(self._passing.pop(0), None)
        places = [0, *(place for place in self.states if place not in self._passing)]
        if len(places) > 1 + _MOST:
            triples = zip(places, places[1:], places[2:], strict=False)
            gaps = {place: after - before for before, place, after in triples}
            del self.states[min(gaps, key=lambda place: gaps[place])]

    def last(self, length: int) -> int:
        """Return the last place of the first `length` tokens, 0 where there is none."""
        return max((place for place in self.states if place <= length), default=0)

    def forget_after(self, length: int) -> None:
        """Forget what is behind the first `length` tokens."""
        self.states = {place: states for place, states in self.states.items() if place <= length}
        self._passing = [place for place in self._passing if place <= length]

    def copy(self) -> Snapshots:
        """Return the same snapshots, for another text that begins as this one does."""
        copy = Snapshots()
        copy.states, copy._passing = dict(self.states), list(self._passing)
        return copy

"""PromptLookup: guess that what followed the last tokens before follows them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# How many tokens have to be the same, and how often a guess then comes true, until more is known: a longer match is a
# better guess, so each length is a kind of its own.
SIZES = {8: 0.8, 4: 0.6, 2: 0.4}


class PromptLookup:
    """Guess the next tokens of a text from its own beginning: a prompt with its earlier turns, and the answer so far.

    Quotations, rewritten text and code repeat what stands there already. A lookup costs microseconds.
    Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding).
    """

    costs_nothing = True
    kinds: Mapping[int, float] = SIZES

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._place_after: dict[tuple[int, ...], int] = {}  # of some tokens in a row: where they were last, their end
        self._found = 0

    def extend(self, token_ids: Sequence[int]) -> None:
        """Take the tokens that the text goes on with."""
        ids = self._ids
        for id_ in token_ids:
            place = len(ids)
            for size in SIZES:
                if place >= size:
                    self._place_after[tuple(ids[place - size :])] = place
            ids.append(id_)

    def look(self) -> int | None:
        """Return how many of the last tokens were there before, one of `kinds`; None where there is no guess."""
        for size in SIZES:
            if (place := self._place_after.get(tuple(self._ids[-size:]))) is not None:
                self._found = place
                return size
        return None

    def guess(self, count: int) -> list[int]:
        """Return `count` tokens after the place that `look` found; where the text ends, its last period goes on."""
        period = len(self._ids) - self._found
        return [self._ids[self._found + i % period] for i in range(count)]

"""NGrams: which tokens would make a sequence of n tokens come again."""

from __future__ import annotations

import copy
from collections.abc import Sequence

Followers = dict[tuple[int, ...], set[int]]


def followers(size: int, token_ids: Sequence[int]) -> Followers:
    """Return the tokens that come behind each sequence of `size` - 1 tokens in a text."""
    found: Followers = {}
    for end in range(size, len(token_ids) + 1):
        found.setdefault(tuple(token_ids[end - size : end - 1]), set()).add(token_ids[end - 1])
    return found


class NGrams:
    """Follow a text token by token, and know what came behind each sequence of n - 1 tokens in it.

    size: n. A copy shares what it knows of the first tokens, the prompt's, and goes on by itself.
    """

    def __init__(self, size: int, token_ids: Sequence[int]) -> None:
        self._before = size - 1
        # The newest tokens, n - 1 of them as soon as there are so many.
        self._last = tuple(token_ids[max(0, len(token_ids) - self._before) :])
        self._followers_in_prompt = followers(size, token_ids)
        self._followers: Followers = {}

    def add(self, token_id: int) -> None:
        """Take the next token of the text."""
        last = (*self._last, token_id)
        if len(self._last) == self._before:
            self._followers.setdefault(self._last, set()).add(token_id)
            last = last[1:]
        self._last = last

    def repeating(self) -> set[int]:
        """Return the tokens that would make the last n tokens a sequence that was there already."""
        return self._followers_in_prompt.get(self._last, set()) | self._followers.get(self._last, set())

    def copy(self) -> NGrams:
        """Return another that goes on by itself."""
        other = copy.copy(self)
        other._followers = {last: set(ids) for last, ids in self._followers.items()}
        return other

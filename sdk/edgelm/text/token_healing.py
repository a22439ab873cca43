"""Token healing: a prompt that ends inside a word is backed up by a token, and the answer begins with its bytes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.text.tokenizer import Tokenizer


def back_up(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> tuple[list[int], bytes]:
    """Return a prompt without its last token, and the bytes of that; or as it is, where no longer token begins so."""
    ids = list(prompt_ids)
    prefix = tokenizer.token_bytes(ids[-1]) if ids else b""
    if len(ids) < 2 or not prefix or ids[-1] in tokenizer.control_token_ids:
        return ids, b""
    if all(tokenizer.token_bytes(id_) == prefix for id_ in _ids_beginning(tokenizer, prefix)):
        return ids, b""
    return ids[:-1], prefix


def _ids_beginning(tokenizer: Tokenizer, prefix: bytes) -> Sequence[int]:
    """Return the tokens of text that begin with these bytes; first those that are no more."""
    ids = tokenizer.ids_by_bytes
    first = bisect_left(ids, prefix, key=tokenizer.token_bytes)
    end = bisect_right(ids, prefix, lo=first, key=lambda id_: tokenizer.token_bytes(id_)[: len(prefix)])
    return ids[first:end]


class PrefixMatcher:
    """Hold the first tokens of an answer to bytes that stand already; to be used as a ConstraintMatcher is."""

    is_complete = False

    def __init__(self, tokenizer: Tokenizer, prefix: bytes) -> None:
        self._tokenizer, self._prefix = tokenizer, prefix

    @property
    def is_active(self) -> bool:
        """Whether some of the bytes are not there yet."""
        return bool(self._prefix)

    def mask(self, logits_V: NDArray[np.float32]) -> None:
        """Set the logits of all tokens that do not go on with the bytes to -inf, in place."""
        ids, bytes_of = self._tokenizer.ids_by_bytes, self._tokenizer.token_bytes
        allowed = [*_ids_beginning(self._tokenizer, self._prefix)]
        for length in range(1, len(self._prefix)):
            part = self._prefix[:length]
            allowed += ids[bisect_left(ids, part, key=bytes_of) : bisect_right(ids, part, key=bytes_of)]
        allowed_V = np.zeros(logits_V.size, np.bool_)
        allowed_V[[id_ for id_ in allowed if id_ < logits_V.size]] = True
        np.copyto(logits_V, -np.inf, where=~allowed_V)

    def forced(self) -> list[int]:
        """Return no tokens: even one that has the bytes alone may be drawn or not."""
        return []

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen."""
        self._prefix = self._prefix[len(self._tokenizer.token_bytes(token_id)) :]

"""StreamDecoder: token ids to text, one at a time, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Collection

from edgelm.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decode an answer while it grows. All that `push` and `flush` return, joined, is `tokenizer.decode` of all ids.

    A character split over tokens comes with its last one; bytes that are no UTF-8 become U+FFFD as soon as that is
    certain. Control tokens have no text, but for those that are visible. skip: how many bytes of the beginning are not
    shown.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, visible: Collection[str] = (), keep_leading_space: bool = False, skip: int = 0
    ) -> None:
        self._bytes_of = tokenizer.token_bytes
        self._control_ids = tokenizer.control_token_ids - {tokenizer.control_tokens.get(text) for text in visible}
        self._strip_next = tokenizer.strips_leading_space and not keep_leading_space
        self._skip = skip
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def push(self, token_id: int) -> str:
        """Take one token, and return the characters that are complete with it."""
        if token_id in self._control_ids:
            return ""
        data = self._bytes_of(token_id)
        if self._strip_next and data:
            data = data.removeprefix(b" ")
            self._strip_next = False
        data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        return self._decode(data)

    def flush(self) -> str:
        """Return what is left of an unfinished character, as U+FFFD."""
        return self._decode(b"", True)

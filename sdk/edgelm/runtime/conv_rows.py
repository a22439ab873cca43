"""ConvRows: what the convolutions of a graph read of the tokens before, and what they give of the new ones.

Shapes: R rows, T query tokens, C capacity of the cache, L tokens that a convolution sees, W channels of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.memory.kv_cache import KeysOrValues
from edgelm.runtime.decoder_graph import PAST_CONV, PRESENT_CONV


class ConvRows:
    """Copy what R rows of T tokens need from the last buffer of a cache, [R, 1, C, W], and what they give into it.

    past [R, 1, L - 1, W] and present [R, 1, T, W] are what a graph is bound to: by its names in `inputs` and `outputs`.
    """

    def __init__(self, buffer: KeysOrValues, seen: int, tokens: int) -> None:
        rows, _, _, channels = buffer.shape
        self._buffer = buffer
        self._past = np.zeros((rows, 1, seen - 1, channels), np.float32)
        self._present = np.zeros((rows, 1, tokens, channels), np.float32)
        self.inputs: dict[str, NDArray[Any]] = {PAST_CONV: self._past}
        self.outputs: dict[str, NDArray[Any]] = {PRESENT_CONV: self._present}

    def read(self, lengths: Sequence[int]) -> None:
        """Take what is before the new tokens; `lengths` counts the tokens in each row's cache with them."""
        seen, tokens = self._past.shape[2], self._present.shape[2]
        for row, length in enumerate(lengths):
            first = length - tokens
            if first >= seen:
                self._past[row] = self._buffer[row, :, first - seen : first]
            else:  # before a text is nothing
                self._past[row, :, : seen - first] = 0
                self._past[row, :, seen - first :] = self._buffer[row, :, :first]

    def keep(self, lengths: Sequence[int]) -> None:
        """Put what the new tokens give into each row's cache, of so many tokens with them."""
        tokens = self._present.shape[2]
        for row, length in enumerate(lengths):
            self._buffer[row, :, length - tokens : length] = self._present[row]

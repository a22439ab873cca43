"""States: what layers without keys and values know of a text, which a graph takes and gives.

Shapes: R rows; a layer's states are [R, W, L - 1] and [R, N, X, Y] (edgelm_export/layers/linear_attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.memory.kv_cache import KeysOrValues


class States:
    """The states of a cache, by their names in a graph's `inputs` and `outputs`.

    in_place: a call writes them where it reads them, which copies nothing; otherwise a call that is stopped changes
    nothing.
    """

    def __init__(
        self, buffers: Sequence[KeysOrValues], past: Sequence[str], present: Sequence[str], *, in_place: bool
    ) -> None:
        self._buffers = buffers
        self._given = buffers if in_place else [np.empty_like(buffer) for buffer in buffers]
        self.inputs: dict[str, NDArray[Any]] = dict(zip(past, buffers, strict=True))
        self.outputs: dict[str, NDArray[Any]] = dict(zip(present, self._given, strict=True))

    def read(self, lengths: Sequence[int]) -> None:
        """Do nothing: they are where the graph reads them."""

    def keep(self, lengths: Sequence[int]) -> None:
        """Put what a call gave into the cache."""
        if self._given is not self._buffers:
            for buffer, given in zip(self._buffers, self._given, strict=True):
                buffer[:] = given

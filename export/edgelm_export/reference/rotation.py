"""Rotary positions in plain numpy: parts of the model beside it.

Shapes: T tokens, N heads, H head dim, R its part that turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.architecture.rope import has_long_table
from edgelm.config import ModelConfig
from edgelm_export.reference.weights import Array


def rows_of_positions(config: ModelConfig, kind: str, table: Array, lengths: Sequence[int]) -> Array:
    """Take the rows of each sequence; from the second half of the table where the text is long for LongRoPE."""
    long = len(table) // 2 if has_long_table(config, kind) else 0
    firsts = [long if (config.short_context or 0) < length else 0 for length in lengths]
    return np.concatenate([table[first : first + length] for first, length in zip(firsts, lengths, strict=True)])


def rotate(x_NTH: Array, cos_TR: Array, sin_TR: Array) -> Array:
    """Turn dimension i and i + R/2 of each head by the position's angle; the tables are [T, R/2]."""
    half = cos_TR.shape[1]
    first, second, rest = x_NTH[..., :half], x_NTH[..., half : 2 * half], x_NTH[..., 2 * half :]
    return np.concatenate([first * cos_TR - second * sin_TR, second * cos_TR + first * sin_TR, rest], axis=-1)

"""What a KV cache is made of: its buffers, one after the other, and how much each holds of a token."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import NamedTuple

import numpy as np

from edgelm.config import ModelConfig

_TYPES: Mapping[str, type[np.float32 | np.int8]] = {"fp32": np.float32, "int8": np.int8}


def cache_type(config: ModelConfig) -> type[np.float32 | np.int8]:
    """Return the type that keys and values are kept in."""
    return _TYPES[config.kv_cache]


class BufferLayout(NamedTuple):
    """A buffer [rows, heads, capacity, size]; window: how many tokens before it a query sees of it, itself the last."""

    heads: int
    size: int
    type: type[np.float32 | np.int8]
    window: int | None

    def shape(self, rows: int, capacity: int) -> tuple[int, int, int, int]:
        """Return the shape of a buffer for so many rows of so many tokens."""
        return rows, self.heads, capacity, self.size

    @property
    def bytes_per_token(self) -> int:
        """How many bytes a token takes."""
        return self.heads * self.size * np.dtype(self.type).itemsize


def cache_layout(config: ModelConfig) -> list[BufferLayout]:
    """List the buffers of a model's cache.

    Keys and values of each layer with attention come first, one after the other; behind them is what the convolutions
    of all other layers read, [rows, 1, capacity, W], where there are any.
    """
    K, H, kept = config.num_key_value_heads, config.head_dim, cache_type(config)
    layout = [BufferLayout(K, H, kept, config.window(layer)) for layer in config.attention_layers for _ in range(2)]
    if config.conv_channels:
        layout.append(BufferLayout(1, config.conv_channels, np.float32, config.conv_L_cache))
    return layout


def alike(config: ModelConfig) -> list[tuple[BufferLayout, int]]:
    """Count the buffers of a cache that follow each other and are alike but for their windows; the first of each."""
    runs = [list(run) for _, run in groupby(cache_layout(config), lambda buffer: buffer[:3])]
    return [(run[0], len(run)) for run in runs]

"""What a KV cache is made of: its buffers, one after the other, and how much each holds of a token or of a text."""

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


class StateLayout(NamedTuple):
    """A buffer [rows, …] of what is known at one place of a text, however long it is."""

    sizes: tuple[int, ...]
    type: type[np.float32] = np.float32
    window: None = None
    bytes_per_token: int = 0

    def shape(self, rows: int, capacity: int) -> tuple[int, ...]:
        """Return the shape of a buffer for so many rows; of so many tokens or others."""
        return rows, *self.sizes


def state_tokens(config: ModelConfig) -> int:
    """Return how many tokens' keys and values take the memory of a text's states."""
    return -(-config.state_bytes // config.kv_bytes_per_token)


def cache_layout(config: ModelConfig) -> list[BufferLayout | StateLayout]:
    """List the buffers of a model's cache.

    What is kept of each layer that has keys and values of its own comes first, one after the other; behind is what the
    convolutions of all layers that have one in their place read, [rows, 1, capacity, W], where there are any; then the
    states of a text, those of one kind after those of the other.
    """
    kept = cache_type(config)
    layout: list[BufferLayout | StateLayout] = [
        BufferLayout(config.kv_heads(layer), config.head_size(layer), kept, config.window(layer))
        for layer in config.cached_layers
        for _ in config.kept_parts
    ]
    if config.conv_channels:
        layout.append(BufferLayout(1, config.conv_channels, np.float32, config.conv_L_cache))
    for shape in config.state_shapes:
        layout += [StateLayout(shape)] * len(config.state_layers)
    return layout


def alike(config: ModelConfig) -> list[tuple[BufferLayout | StateLayout, int]]:
    """Return the runs of a cache's buffers that are alike but for their windows: the first of each, and its length."""
    runs = [list(run) for _, run in groupby(cache_layout(config), lambda each: (each.shape(1, 1), each.type))]
    return [(run[0], len(run)) for run in runs]

"""Relative positions: the bucket of each distance between a query and a key (T5, arXiv:1910.10683, 2.1), or what a head
takes off a score for each token of it (ALiBi, arXiv:2108.12409, 3).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig

Integers = NDArray[np.int64]


def distances_name(config: ModelConfig, stack: str, layer: int) -> str:
    """Name the tensor [buckets, N] of the scores that a layer of a stack adds: the stack's, or the layer's own."""
    owner = f"{stack}.layers.{layer}.self_attn" if config.relative_attention_per_layer else stack
    return f"{owner}.relative_attention_bias.weight"


def relative_buckets(config: ModelConfig, distances: Integers, *, both_ways: bool) -> Integers:
    """Return the bucket of each distance (place of the key less that of the query), 0 to num_buckets - 1.

    The first half of the buckets has one distance each, the rest more and more of them. both_ways: half of all buckets
    are for later keys, as in an encoder; otherwise those count as the query's own place. Rounded to float32 as in
    transformers: 8 · 2ⁿ lies on the edge of two buckets.
    """
    buckets, first = config.relative_attention_num_buckets, np.zeros_like(distances)
    if both_ways:
        buckets //= 2
        first, distances = np.where(distances > 0, buckets, 0), np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = buckets // 2
    ratios = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    growth = ratios / np.float32(math.log(config.relative_attention_max_distance / exact))
    large = exact + (growth * np.float32(buckets - exact)).astype(np.int64)
    found: Integers = first + np.where(distances < exact, distances, np.minimum(large, buckets - 1))
    return found


def alibi_slopes(config: ModelConfig) -> NDArray[np.float32]:
    """Return what each head [N] takes off a score for each token between a query and a key.

    They are a geometric sequence down to 1/256, of a power of two of heads; where there are fewer, every other one of
    it first, and then those between; all are multiplied by alibi_multiplier.
    """
    heads = config.num_attention_heads
    power = 1 << (heads - 1).bit_length()
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    if power != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return (slopes * config.alibi_multiplier).astype(np.float32)

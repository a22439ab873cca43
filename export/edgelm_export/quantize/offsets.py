"""Offsets: what is added to all weights of a block, beside the grid that MatMulNBits computes with.

Files of 4 bits (Q4_1, Q4_K) have blocks that begin anywhere, and those of mlx may; zero points between whole ones take
31 times as long (docs/results/graph-and-settings.md). An offset multiplies the sum of the inputs of its block instead.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from edgelm.architecture.block_grid import zero_places
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import PackedWeight, into_bytes, pack, unpack, unpack_values, zero_points_of

# What holds any weight nearly; the block size is that of the files' blocks, so that no scale spans two of them.
FALLBACK = Scheme(bits=8, block_size=32, symmetric=True, method="rounded")


def joined(weight: PackedWeight) -> PackedWeight:
    """Return a weight with its offsets as further columns: what multiplies an input with the sums of its blocks behind.

    So K is a whole number of blocks, behind which the sums begin.
    """
    if weight.offsets is None:
        return weight
    zeros = None
    if weight.zero_points is not None and weight.offsets.zero_points is not None:
        zeros = np.concatenate([zero_points_of(weight), zero_points_of(weight.offsets)], axis=1)
        zeros = into_bytes(zeros, weight.bits)
    return dataclasses.replace(
        weight,
        columns=weight.columns + weight.offsets.columns,
        packed=np.concatenate([weight.packed, weight.offsets.packed], axis=1),
        scales=np.concatenate([weight.scales, weight.offsets.scales], axis=1),
        zero_points=zeros,
        offsets=None,
    )


def taken_apart(weight: PackedWeight, columns: int) -> PackedWeight:
    """Return a weight of so many columns with its offsets, of what `joined` made of it."""
    if weight.columns == columns:
        return weight
    blocks = columns // weight.block_size
    first, second = (_blocks_of(weight, which) for which in (slice(blocks), slice(blocks, None)))
    return dataclasses.replace(first, columns=columns, offsets=dataclasses.replace(second, columns=blocks))


def _blocks_of(weight: PackedWeight, which: slice) -> PackedWeight:
    zeros = None if weight.zero_points is None else into_bytes(zero_points_of(weight)[:, which], weight.bits)
    return dataclasses.replace(
        weight, packed=weight.packed[:, which], scales=weight.scales[:, which], zero_points=zeros
    )


def in_8_bits(weight: PackedWeight) -> PackedWeight:
    """Return a weight with offsets in 8 bits without: of 4 bits, zero points lie at sixteenths of a step there.

    Where a block begins beyond what zero points reach, and where there are 8 bits already, all are rounded again, in
    the same blocks.
    """
    if weight.offsets is None:
        return weight
    rounded = dataclasses.replace(FALLBACK, block_size=weight.block_size)
    if weight.bits == 8:
        return quantize_alone(unpack(weight), rounded)
    values, zeros = unpack_values(weight)
    finer = 1 << (8 - weight.bits)
    middle = np.zeros_like(weight.scales) if zeros is None else zeros / np.float32(zero_places(weight.bits))
    added = unpack(weight.offsets)
    without_steps = np.where(added == 0, np.float32(0), np.float32(np.inf))  # no zero point makes them another weight
    offsets = np.divide(added, weight.scales, out=without_steps, where=weight.scales != 0)
    places = np.rint((middle - offsets) * np.float32(finer))
    if places.min() < -128 or places.max() > 127:
        return quantize_alone(unpack(weight), rounded)
    return pack(
        (values.astype(np.int16) * finer + 128).astype(np.uint8),
        weight.scales / np.float32(finer),
        (places.astype(np.int16) + 128).astype(np.uint8),
        bits=8,
        columns=weight.columns,
    )

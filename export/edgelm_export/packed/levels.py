"""Levels: integers with a scale and a lowest weight for each block, as GGUF's Q4_1 and Q4_K and mlx-lm store them.

weight = scale * value + lowest. MatMulNBits has zero points instead, so a block's lowest weight becomes the nearest of
those, and an offset (quantize/offsets.py).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.block_grid import half_scales, zero_places
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks

# Bits of the integers -> of the grid that holds them: MatMulNBits has none of three.
_HELD_IN = {2: 2, 3: 4, 4: 4, 5: 5, 6: 6, 8: 8}
# What bfloat16 loses of a scale and a lowest weight moves that by less than this share of a block's range.
_OF_THE_RANGE = np.float32(2**-8)


def on_levels(
    values: NDArray[np.uint8], scales: NDArray[np.float32], lowest: NDArray[np.float32], *, bits: int
) -> QuantizedBlocks:
    """Return weights `scales * values + lowest`: the nearest zero point, and the offset that it leaves.

    There are no offsets where all are so small that rounding the scales may have made them. Those of 2 bits would be
    far from theirs on a grid like it: such a matrix takes 4.
    values: [rows, blocks, block_size], integers of so many bits. scales, lowest: [rows, blocks].
    """
    held = _HELD_IN[bits]
    blocks = _in_bits(held, values, half_scales(scales), lowest)
    assert blocks.offsets is not None
    limits = np.abs(blocks.scales) * (np.float32(1 << bits) * _OF_THE_RANGE)
    if (np.abs(blocks.offsets) <= limits).all():
        return dataclasses.replace(blocks, offsets=None)
    return blocks if held > 2 else _in_bits(4, values, blocks.scales, lowest)


def _in_bits(
    bits: int, values: NDArray[np.uint8], scales: NDArray[np.float32], lowest: NDArray[np.float32]
) -> QuantizedBlocks:
    top, middle, places = (1 << bits) - 1, 1 << (bits - 1), np.float32(zero_places(bits))
    # A damaged file has numbers that are none; whoever reads the scales and offsets refuses them.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zeros = np.clip(np.rint(-lowest / scales * places), 0, top * places)
        zeros = np.where(np.isfinite(zeros), zeros, 0).astype(np.float32)
        offsets = (lowest + zeros / places * scales).astype(np.float32)
    return QuantizedBlocks(
        bits=bits,
        block_size=values.shape[2],
        values=(values.astype(np.int16) - middle).astype(np.int8),
        scales=scales,
        zero_points=(zeros - middle * places).astype(np.int8),
        offsets=offsets,
    )

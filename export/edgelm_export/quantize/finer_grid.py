"""A packed weight on a finer grid: as many bits or more, blocks as long or shorter; no value changes."""

from __future__ import annotations

import numpy as np

from edgelm.architecture.block_grid import zero_places
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks
from edgelm_export.quantize.keep import on_its_grid
from edgelm_export.quantize.packed import PackedWeight, unpack_values


def on_finer_grid(weight: PackedWeight, bits: int, block_size: int, has_zeros: bool) -> PackedWeight:
    """Write a weight on a grid of so many bits and such blocks, with zero points or, where it has none, without."""
    values, zeros = unpack_values(weight)
    rows, each, count = len(values), weight.block_size // block_size, -(-weight.columns // block_size)
    if zeros is None and has_zeros:
        zeros = np.zeros(weight.scales.shape, np.int8)
    # Zero points between the steps of 5 and 6 bits need the smaller steps of more.
    places, finer = zero_places(weight.bits), 0
    if zeros is not None:
        finer = bits - weight.bits if places > 1 else 0
        zeros = (zeros.astype(np.int32) * (zero_places(bits) << finer) // places).astype(np.int8)
    blocks = QuantizedBlocks(
        bits=bits,
        block_size=block_size,
        values=values.reshape(rows, -1, block_size)[:, :count] << np.int8(finer),
        scales=np.repeat(weight.scales / np.float32(1 << finer), each, axis=1)[:, :count],
        zero_points=None if zeros is None else np.repeat(zeros, each, axis=1)[:, :count],
    )
    return on_its_grid(blocks, weight.columns)

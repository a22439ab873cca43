"""Planes: integers of 5 or 6 bits on the disk, as their upper four bits and the one or two below them.

MatMulNBits computes with 8, 4 and 2 bits. A graph joins the planes to 8 bits when it is loaded, by operators on
constants that ONNX Runtime computes once: the file is that of 5 or 6 bits, memory and speed are those of 8.

Shapes: N rows; blocks along the columns; in each, an axis of one that the graph shifts along, then bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Bits of a scheme -> those in the lower plane.
LOWER_BITS = {5: 1, 6: 2}
UPPER_BITS = 4


def to_planes(values: Bytes, bits: int) -> tuple[Bytes, Bytes]:
    """Split integers [N, blocks, block_size] into planes [N, blocks, 1, block_size * bits of the plane / 8].

    A byte holds values that stand block_size / 2 apart, or / 8 or / 4 in the lower plane, the first in its lowest bits:
    what is shifted out of all bytes at once is a stretch of the block.
    """
    lower = LOWER_BITS[bits]
    return _packed(values >> np.uint8(lower), UPPER_BITS), _packed(values & np.uint8((1 << lower) - 1), lower)


def from_planes(high: Bytes, low: Bytes, bits: int) -> Bytes:
    """Join planes to integers [N, blocks, block_size]."""
    lower = LOWER_BITS[bits]
    return (_unpacked(high, UPPER_BITS) << np.uint8(lower)) | _unpacked(low, lower)


def shifts(bits: int) -> list[int]:
    """Return by how much a plane's bytes are shifted for each stretch of a block."""
    return list(range(0, 8, bits))


def _packed(values: Bytes, bits: int) -> Bytes:
    N, blocks, _ = values.shape
    stretches = values.reshape(N, blocks, 8 // bits, -1)
    by_shift = np.array(shifts(bits), np.uint8)[:, None]
    return np.bitwise_or.reduce(stretches << by_shift, axis=2, keepdims=True)


def _unpacked(plane: Bytes, bits: int) -> Bytes:
    by_shift = np.array(shifts(bits), np.uint8)[:, None]
    N, blocks, _, _ = plane.shape
    return ((plane >> by_shift) & np.uint8((1 << bits) - 1)).reshape(N, blocks, -1)

"""Planes: integers of 5 or 6 bits on the disk, as their upper four bits and the one or two below them.

MatMulNBits computes with 8, 4 and 2 bits. The planes are joined to 8 bits when a graph is loaded: the file is that of 5
or 6 bits, memory and speed are those of 8. The graph has nodes for it, on constants, so that any ONNX Runtime can do it
(edgelm_export/layers/packed_operators.py); the runtime here does it with less memory (runtime/joined_planes.py).

Shapes: N rows; blocks along the columns; in each, an axis of one that the graph shifts along, then bytes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Behind the name of a weight, the names of its planes.
PLANES = ("upper", "lower")
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


def from_planes(upper: Bytes, lower: Bytes, bits: int) -> Bytes:
    """Join planes to integers [N, blocks, block_size]."""
    return joined(upper, lower, bits) >> np.uint8(8 - bits)


def joined(upper: Bytes, lower: Bytes, bits: int) -> Bytes:
    """Join planes to integers [N, blocks, block_size] in the upper bits of 8, as a graph computes with them."""
    values = _unpacked(upper, UPPER_BITS, 8 - UPPER_BITS)
    values |= _unpacked(lower, LOWER_BITS[bits], 8 - bits)
    return values


def shifts(bits: int) -> list[int]:
    """Return by how much a plane's bytes are shifted for each stretch of a block."""
    return list(range(0, 8, bits))


def _packed(values: Bytes, bits: int) -> Bytes:
    N, blocks, _ = values.shape
    stretches = values.reshape(N, blocks, 8 // bits, -1)
    by_shift = np.array(shifts(bits), np.uint8)[:, None]
    return np.bitwise_or.reduce(stretches << by_shift, axis=2, keepdims=True)


def _unpacked(plane: Bytes, bits: int, place: int) -> Bytes:
    """Return a plane's values one a byte, each in the bits from `place` on."""
    N, blocks, _, size = plane.shape
    values = np.empty((N, blocks, 8 // bits, size), np.uint8)
    # As many bytes at once as a stretch has, up to eight: what is shifted into a byte from its neighbour is masked out.
    word = np.dtype(f"u{math.gcd(size, 8)}")
    words, stretches = plane.view(word), values.view(word)
    mask = np.full(word.itemsize, (1 << bits) - 1 << place, np.uint8).view(word)
    for i, shift in enumerate(shifts(bits)):
        moved = (
            words[:, :, 0] << word.type(place - shift) if place > shift else words[:, :, 0] >> word.type(shift - place)
        )
        np.bitwise_and(moved, mask, out=stretches[:, :, i])
    return values.reshape(N, blocks, -1)

"""What every tensor type of GGUF is read with: halves and fields of bits in blocks of bytes. Shapes: N blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]
Weights = NDArray[np.float32]


def half(blocks: Blocks, at: int) -> Weights:
    """Read the float16 at byte `at` of each block: [N, 1]."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def fields(packed: Blocks, bits: int) -> Blocks:
    """Split [N, G, L] bytes into fields of `bits` bits: [N, G, 8 / bits, L], the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[:, :, None, :] >> shifts) & np.uint8((1 << bits) - 1)


def in_turn(packed: Blocks, bits: int) -> Blocks:
    """Split [N, L] bytes into fields of `bits` bits, those of a byte behind each other: [N, L * 8 / bits]."""
    mask = np.uint8((1 << bits) - 1)
    # Not by `fields`, which would take six times as long over bytes that stand alone (2,880 x 1,440, 4 bits).
    parts = [(packed >> np.uint8(shift)) & mask for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(len(packed), -1)

"""int8: symmetric round-to-nearest, 8 bits. Nearly lossless at a block of 64 (docs/results/quantization.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_export.quantize.packed import PackedWeight, in_blocks, pack


def quantize_int8(weight_NK: NDArray[np.float32], block_size: int) -> PackedWeight:
    """Round to -127..127 times a scale per block; the zero point is 128."""
    blocks = in_blocks(weight_NK, block_size)
    scales = np.abs(blocks).max(-1) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    values = (np.rint(blocks * inverse[..., None]) + 128).astype(np.uint8)
    return pack(values, scales, None, bits=8, columns=weight_NK.shape[1])

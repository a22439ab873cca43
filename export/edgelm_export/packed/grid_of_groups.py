"""Grid: the integers of a matrix with scales and zero points for groups of inputs, as packed checkpoints have them.

Shapes: N outputs, K inputs, G groups of inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_scheme import BLOCK_SIZES
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks

# Blocks of MatMulNBits that a whole row's one scale is spread over.
_ROW_BLOCKS = (128, 64, 32, 16)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Integers of a matrix: weight[n, k] = scales[n, g] * (values[n, k] - zeros[n, g]) with g = groups[k]."""

    bits: int
    values: NDArray[np.int32]  # [N, K]
    zeros: NDArray[np.int32]  # [N, G]
    scales: NDArray[np.float32]  # [N, G]
    groups: NDArray[np.int64]  # [K]

    def weight(self) -> NDArray[np.float32]:
        """Return the matrix in float32."""
        weight: NDArray[np.float32] = (self.values - self.zeros[:, self.groups]).astype(np.float32)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            weight *= self.scales[:, self.groups]
        return weight

    def blocks(self) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where its groups are not blocks of a size that is fast."""
        N, K = self.values.shape
        G = self.scales.shape[1]
        size = K // G if K % G == 0 else 0
        if G == 1:  # one scale a row: the same for each of its blocks
            size = next((size for size in _ROW_BLOCKS if K % size == 0), 0)
        if size not in BLOCK_SIZES[self.bits] or (G > 1 and not np.array_equal(self.groups, np.arange(K) // size)):
            return None
        middle = 1 << (self.bits - 1)
        zeros, scales = (np.broadcast_to(each, (N, K // size)) for each in (self.zeros, self.scales))
        return QuantizedBlocks(
            bits=self.bits,
            block_size=size,
            values=(self.values - middle).astype(np.int8).reshape(N, -1, size),
            scales=np.ascontiguousarray(scales),
            zero_points=None if (zeros == middle).all() else (zeros - middle).astype(np.int8),
        )

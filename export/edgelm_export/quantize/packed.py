"""PackedWeight: a matrix on MatMulNBits' grid, in the layout that the operator reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A weight [N, K] in blocks along K: weight = scales * (value - zero point).

    packed: uint8 [N, blocks, block_size * bits / 8], for 4 bits two values a byte, the first in the low half.
    scales: float32 [N, blocks]. zero_points: uint8 [N, blocks] for 8 bits, packed by two along the blocks for 4; None
    is the middle of the range (8 or 128). K is padded with zeros to whole blocks.
    Source: the operator specification of com.microsoft.MatMulNBits.
    """

    bits: int
    block_size: int
    columns: int  # K
    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None

    @property
    def layout(self) -> tuple[int, int, bool]:
        """What must be equal for two weights to be stacked into one."""
        return self.bits, self.block_size, self.zero_points is None


def in_blocks(weight_NK: NDArray[np.float32], block_size: int) -> NDArray[np.float32]:
    """Cut the columns into blocks [N, blocks, block_size], padded with zeros."""
    N, K = weight_NK.shape
    blocks = -(-K // block_size)
    padded = np.pad(weight_NK, ((0, 0), (0, blocks * block_size - K))) if K % block_size else weight_NK
    return padded.reshape(N, blocks, block_size)


def pack(
    values: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None,
    *,
    bits: int,
    columns: int,
) -> PackedWeight:
    """Pack integers [N, blocks, block_size] in 0..2**bits - 1 with their scales and zero points [N, blocks]."""
    return PackedWeight(
        bits=bits,
        block_size=values.shape[2],
        columns=columns,
        packed=_pair(values) if bits == 4 else values,
        scales=scales.astype(np.float32),
        zero_points=_pair(zero_points) if bits == 4 and zero_points is not None else zero_points,
    )


def _pair(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two 4-bit values into each byte along the last axis, the first in the low half."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return (values[..., 0::2] | (values[..., 1::2] << 4)).astype(np.uint8)


def unpack(weight: PackedWeight) -> NDArray[np.float32]:
    """Return the float32 weight [N, K] that the operator computes with."""
    N, blocks, _ = weight.packed.shape
    values, zeros = weight.packed, weight.zero_points
    if weight.bits == 4:
        values = _unpair(values)
        zeros = None if zeros is None else _unpair(zeros)[:, :blocks]
    offsets = np.float32(1 << (weight.bits - 1)) if zeros is None else zeros.astype(np.float32)[..., None]
    grid = (values.astype(np.float32) - offsets) * weight.scales[..., None]
    return grid.reshape(N, blocks * weight.block_size)[:, : weight.columns]


def _unpair(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:-1], -1)


def stack(weights: list[PackedWeight]) -> PackedWeight:
    """Stack weights of one layout along the rows: one matrix product computes them all."""
    first = weights[0]
    zero_points = None
    if first.zero_points is not None:
        zero_points = np.concatenate([weight.zero_points for weight in weights if weight.zero_points is not None])
    return PackedWeight(
        bits=first.bits,
        block_size=first.block_size,
        columns=first.columns,
        packed=np.concatenate([weight.packed for weight in weights]),
        scales=np.concatenate([weight.scales for weight in weights]),
        zero_points=zero_points,
    )

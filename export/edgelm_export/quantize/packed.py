"""PackedWeight: a matrix on MatMulNBits' grid, in the layout that the operator reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.block_grid import zero_places

_VALUES_IN_A_BYTE = {2: 4, 4: 2, 5: 1, 6: 1, 8: 1}  # by their bits


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A weight [N, K] in blocks along K: weight = scales * (value - zero point) + offset.

    packed: uint8 [N, blocks, block_size * bits / 8], of 4 and 2 bits several values a byte, the first in the lowest
    bits; of 5 and 6 one (planes.py).
    scales: float32 [N, blocks]. zero_points: uint8 [N, blocks], packed along the blocks in the same way; of 5 and 6
    bits in eighths and quarters of a step; None is the middle of the range (2, 8, 16, 32 or 128). K is padded with
    zeros to whole blocks.
    offsets: a weight [N, blocks] with blocks of the same layout: what is added to all weights of each block; None is
    nothing (offsets.py).
    remainder: a weight [N, K], the lower plane of a head with a shortlist, which is added; None is nothing
    (two_planes.py).
    Source: the operator specification of com.microsoft.MatMulNBits.
    """

    bits: int
    block_size: int
    columns: int  # K
    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8] | None
    offsets: PackedWeight | None = None
    remainder: PackedWeight | None = None

    def check(self, shape: tuple[int, ...]) -> None:
        """Compare what is there with a weight of `shape` [N, K].

        Raises:
            ValueError: it does not fit, or its integers are no bytes; the message names what was found.
        """
        if self.bits not in _VALUES_IN_A_BYTE:
            raise ValueError(f"{self.bits} bits; there are grids of {', '.join(map(str, _VALUES_IN_A_BYTE))}")
        if self.columns != shape[1]:
            raise ValueError(f"{self.columns} columns, not {shape[1]}")
        if self.offsets is not None:
            self.offsets.check(self.scales.shape)
        if self.remainder is not None:
            self.remainder.check(shape)
        (N, K), in_a_byte = shape, _VALUES_IN_A_BYTE[self.bits]
        if self.block_size % in_a_byte:
            raise ValueError(f"blocks of {self.block_size}, which are no whole bytes of {in_a_byte} values")
        blocks = -(-K // self.block_size)
        wanted = {
            "packed": ((N, blocks, self.block_size // in_a_byte), np.uint8),
            "scales": ((N, blocks), np.float32),
            "zero_points": ((N, -(-blocks // in_a_byte)), np.uint8),
        }
        for name, (one_shape, dtype) in wanted.items():
            array = getattr(self, name)
            if array is not None and (array.shape != one_shape or array.dtype != dtype):
                raise ValueError(
                    f"{name} are {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(one_shape)}"
                )

    @property
    def layout(self) -> tuple[int, int, bool, bool]:
        """What must be equal for two weights to be stacked into one."""
        return self.bits, self.block_size, self.zero_points is None, self.offsets is None

    @property
    def stored_scales(self) -> NDArray[np.float16 | np.float32]:
        """The scales as they are on the disk: in float16 where that holds them all."""
        with np.errstate(over="ignore"):
            halves = self.scales.astype(np.float16)
        return halves if np.array_equal(halves, self.scales) else self.scales

    @property
    def nbytes(self) -> int:
        """Its bytes on the disk."""
        integers = self.scales.size * self.block_size * self.bits // 8
        parts = (self.zero_points, self.offsets, self.remainder)
        beside = sum(part.nbytes for part in parts if part is not None)
        return integers + self.stored_scales.nbytes + beside


def pack(
    values: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None,
    *,
    bits: int,
    columns: int,
) -> PackedWeight:
    """Pack integers [N, blocks, block_size] in 0..2**bits - 1 with their scales and zero points [N, blocks].

    zero_points: of 5 and 6 bits in eighths and quarters of a step.
    """
    return PackedWeight(
        bits=bits,
        block_size=values.shape[2],
        columns=columns,
        packed=into_bytes(values, bits),
        scales=scales.astype(np.float32),
        zero_points=None if zero_points is None else into_bytes(zero_points, bits),
    )


def into_bytes(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Put as many values into each byte along the last axis as it holds, the first into the lowest bits."""
    per_byte = 8 // bits
    if per_byte == 1:
        return values
    missing = -values.shape[-1] % per_byte
    if missing:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    packed = values[..., 0::per_byte].copy()
    for i in range(1, per_byte):
        packed |= values[..., i::per_byte] << (bits * i)
    return packed


def unpack_values(weight: PackedWeight) -> tuple[NDArray[np.int8], NDArray[np.int8] | None]:
    """Return the values [N, blocks, block_size] and zero points [N, blocks], less the middle of their range.

    Zero points of 5 and 6 bits are in eighths and quarters of a step, in the range of 8 bits.
    """
    middle = 1 << (weight.bits - 1)
    values = (_from_bytes(weight.packed, weight.bits).astype(np.int16) - middle).astype(np.int8)
    if weight.zero_points is None:
        return values, None
    zeros = zero_points_of(weight)
    return values, (zeros.astype(np.int16) - middle * zero_places(weight.bits)).astype(np.int8)


def unpack(weight: PackedWeight) -> NDArray[np.float32]:
    """Return the float32 weight [N, K] that the operator computes with."""
    values, zeros = unpack_values(weight)
    steps = values.astype(np.float32)
    if zeros is not None:
        steps -= (zeros / np.float32(zero_places(weight.bits)))[..., None]
    steps *= weight.scales[..., None]
    if weight.offsets is not None:
        steps += unpack(weight.offsets)[..., None]
    unpacked = steps.reshape(len(steps), -1)[:, : weight.columns]
    return unpacked if weight.remainder is None else unpacked + unpack(weight.remainder)


def _from_bytes(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits > 4:
        return packed
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], -1)


def rows_of(weight: PackedWeight, rows: slice) -> PackedWeight:
    """Take some rows of a weight."""
    zero_points = None if weight.zero_points is None else weight.zero_points[rows]
    return dataclasses.replace(
        weight,
        packed=weight.packed[rows],
        scales=weight.scales[rows],
        zero_points=zero_points,
        offsets=None if weight.offsets is None else rows_of(weight.offsets, rows),
        remainder=None if weight.remainder is None else rows_of(weight.remainder, rows),
    )


def stack(weights: list[PackedWeight]) -> PackedWeight:
    """Stack weights of one layout along the rows: one matrix product computes them all."""
    first = weights[0]
    offsets = [weight.offsets for weight in weights if weight.offsets is not None]
    zero_points = None
    if first.zero_points is not None:
        zero_points = np.concatenate([weight.zero_points for weight in weights if weight.zero_points is not None])
    return dataclasses.replace(
        first,
        packed=np.concatenate([weight.packed for weight in weights]),
        scales=np.concatenate([weight.scales for weight in weights]),
        zero_points=zero_points,
        offsets=stack(offsets) if offsets else None,
    )


def zero_points_of(weight: PackedWeight) -> NDArray[np.uint8]:
    """Return the stored zero points [N, blocks], one a byte."""
    assert weight.zero_points is not None
    return _from_bytes(weight.zero_points, weight.bits)[:, : weight.scales.shape[1]]

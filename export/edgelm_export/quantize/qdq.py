"""QDQ: a packed weight in the layout of ONNX's DequantizeLinear, and back.

weight = scales * (value - zero point), in the order that MatMul reads: K input channels, N rows of the weight.
Source: the operator specification of DequantizeLinear, version 21 (blocked quantization).
"""

from __future__ import annotations

from math import gcd

import numpy as np
from numpy.typing import NDArray

from edgelm_export.quantize.packed import PackedWeight, pack, unpack_values

BITS = 8  # of a stored value


def whole_block_size(weight: PackedWeight) -> int:
    """Return the size of the blocks that K is a whole number of: OpenVINO knows no shorter last block."""
    return gcd(weight.columns, weight.block_size)


def to_qdq(weight: PackedWeight) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8] | None]:
    """Return values int8 [K, N], and scales float32 and zero points int8 [blocks, N], in blocks along K.

    Values of fewer bits are held in 8, and blocks are cut where K is no whole number of them: exactly.
    """
    values, zeros = unpack_values(weight)
    values_NK = values.reshape(len(values), -1)[:, : weight.columns]
    size = whole_block_size(weight)
    each, count = weight.block_size // size, weight.columns // size
    scales = weight.scales.repeat(each, axis=1)[:, :count]
    cut_zeros = None if zeros is None else np.ascontiguousarray(zeros.repeat(each, axis=1)[:, :count].T)
    return np.ascontiguousarray(values_NK.T), np.ascontiguousarray(scales.T), cut_zeros


def from_qdq(values_KN: NDArray[np.int8], scales: NDArray[np.float32], zeros: NDArray[np.int8] | None) -> PackedWeight:
    """Return the packed weight that `to_qdq` was given, in 8 bits.

    Raises:
        ValueError: the integers are of another type, or do not fit each other.
    """
    K, N = values_KN.shape
    for integers in (values_KN, values_KN if zeros is None else zeros):
        if integers.dtype != np.int8:
            raise ValueError(f"values or zero points are {integers.dtype}, not int8")
    return pack(
        _from_middle(np.ascontiguousarray(values_KN.T).reshape(N, len(scales), -1)),
        np.ascontiguousarray(scales.T),
        None if zeros is None else _from_middle(zeros.T),
        bits=BITS,
        columns=K,
    )


def _from_middle(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    return (values.astype(np.int16) + (1 << (BITS - 1))).astype(np.uint8)

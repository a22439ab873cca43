"""QDQ: a packed weight in the layout of ONNX's DequantizeLinear, and back.

weight = scales * (value - zero point), in the order that MatMul reads: K input channels, N rows of the weight.
Source: the operator specification of DequantizeLinear, version 21 (blocked quantization).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_export.quantize.packed import PackedWeight, pack, unpack_values

BITS = 8  # of a stored value


def to_qdq(weight: PackedWeight) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8] | None]:
    """Return values int8 [K, N], scales float32 [blocks, N] and zero points int8 [blocks, N].

    Values of fewer bits are held in 8, exactly. The blocks lie along K, and the last one may be shorter.
    """
    values, zeros = unpack_values(weight)
    values_NK = values.reshape(len(values), -1)[:, : weight.columns]
    transposed_zeros = None if zeros is None else np.ascontiguousarray(zeros.T)
    return np.ascontiguousarray(values_NK.T), np.ascontiguousarray(weight.scales.T), transposed_zeros


def from_qdq(
    values_KN: NDArray[np.int8], scales: NDArray[np.float32], zeros: NDArray[np.int8] | None, block_size: int
) -> PackedWeight:
    """Return the packed weight that `to_qdq` was given, in 8 bits."""
    K, N = values_KN.shape
    padded_NK = np.pad(values_KN.T, ((0, 0), (0, -K % block_size)))
    return pack(
        _from_middle(padded_NK.reshape(N, -1, block_size)),
        np.ascontiguousarray(scales.T),
        None if zeros is None else _from_middle(zeros.T),
        bits=BITS,
        columns=K,
    )


def _from_middle(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    return (values.astype(np.int16) + (1 << (BITS - 1))).astype(np.uint8)

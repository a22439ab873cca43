"""Tensor types of GGUF: how ggml packs weights into blocks, and how to unpack them exactly.

Layouts are those of the block structs in ggml-common.h; all numbers are little-endian. Shapes: N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks
from edgelm_export.packed.gguf_blocks import Blocks, Weights, fields, half
from edgelm_export.packed.gguf_codebooks import VALUES_AND_SCALES, Values
from edgelm_export.packed.levels import on_levels
from edgelm_export.packed.microscaling import E2M1_DOUBLED, half_of_power

# Weights unpacked at once. Temporary arrays take up to about 12 bytes a weight.
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TensorType:
    """One way to store a tensor: rows of blocks of `block_size` weights in `block_bytes` bytes.

    `unpack` turns uint8 [N, block_bytes] into float32 [N, block_size].
    """

    name: str
    block_size: int
    block_bytes: int
    unpack: Callable[[Blocks], Weights]

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Count the bytes of a tensor whose last dimension is a multiple of the block size."""
        return math.prod(shape) // self.block_size * self.block_bytes


def dequantize(data: NDArray[np.uint8], type: str, shape: tuple[int, ...]) -> Weights:  # noqa: A002
    """Unpack a tensor to float32, bit for bit as ggml's reference does.

    `data` is the tensor's bytes; the result has `shape` (rows first). Temporary memory does not grow with the tensor.

    Raises:
        CheckpointError: the type is unsupported, or `data` has not the size that type and shape ask for.
    """
    tensor_type = _checked_type(data, type, shape)
    blocks = data.reshape(-1, tensor_type.block_bytes)
    weights = np.empty((len(blocks), tensor_type.block_size), np.float32)
    step = _CHUNK // tensor_type.block_size
    for start in range(0, len(blocks), step):
        with np.errstate(invalid="ignore", over="ignore"):  # what is no number is refused where weights are checked
            weights[start : start + step] = tensor_type.unpack(blocks[start : start + step])
    return weights.reshape(shape)


def integer_blocks(
    data: NDArray[np.uint8],
    type: str,  # noqa: A002
    shape: tuple[int, ...],
) -> QuantizedBlocks | None:
    """Return a tensor on its own grid of 4 or 8 bits in blocks of 16 to 128, or None for a type that has another.

    The sixteen values of MXFP4 and NVFP4, doubled, are whole numbers up to 12, and what the IQ types look up is whole
    too: they take 8 bits. The scales of Q4_K, products of two numbers, are rounded to float16; those of the IQ types
    are kept.

    Raises:
        CheckpointError: the type is unsupported, or `data` has not the size that type and shape ask for.
    """
    tensor_type = _checked_type(data, type, shape)
    rows, blocks = math.prod(shape[:-1]), data.reshape(-1, tensor_type.block_bytes)
    if type in _LEVELS:
        levels, *scales_and_lowest = _LEVELS[type](blocks)
        in_rows = (part.reshape(rows, -1) for part in scales_and_lowest)
        return on_levels(levels.reshape(rows, -1, 32), *in_rows, bits=4)
    if type not in _SYMMETRIC:
        return None
    bits, values_and_scales = _SYMMETRIC[type]
    values, scales = values_and_scales(blocks)
    size = values.size // scales.size
    in_blocks = values.reshape(rows, -1, size)
    return QuantizedBlocks(bits=bits, block_size=size, values=in_blocks, scales=scales.reshape(rows, -1))


def _checked_type(data: NDArray[np.uint8], name: str, shape: tuple[int, ...]) -> TensorType:
    tensor_type = _TYPES_BY_NAME.get(name)
    if tensor_type is None:
        raise CheckpointError(f"Tensor type {name!r} is not supported; supported: {', '.join(_TYPES_BY_NAME)}.")
    if not shape or shape[-1] % tensor_type.block_size or data.size != tensor_type.nbytes(shape):
        raise CheckpointError(f"{data.size} bytes are not a {name} tensor of shape {shape}.")
    return tensor_type


def _float32(blocks: Blocks) -> Weights:
    """Read IEEE single precision."""
    return blocks.view("<f4")


def _float16(blocks: Blocks) -> Weights:
    """Read IEEE half precision."""
    return half(blocks, 0)


def _bfloat16(blocks: Blocks) -> Weights:
    """Read the upper half of IEEE single precision."""
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def _fifth_bits(blocks: Blocks, at: int) -> Blocks:
    """Join 4 bytes with the fifth bit of weights 0 to 31 (lowest first) and 16 bytes as in Q4_0: [N, 32]."""
    high = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return fields(blocks[:, None, at + 4 :], 4).reshape(-1, 32) | (high << np.uint8(4))


def _q5_0(blocks: Blocks) -> Weights:
    """d f16, 4 bytes of fifth bits, 16 bytes of lower bits; weight = d * (q - 16)."""
    return half(blocks, 0) * (_fifth_bits(blocks, 2).view(np.int8) - np.int8(16))


def _q5_1(blocks: Blocks) -> Weights:
    """d f16, m f16, 4 bytes of fifth bits, 16 bytes of lower bits; weight = d * q + m."""
    return half(blocks, 0) * _fifth_bits(blocks, 4) + half(blocks, 2)


def _q2_k(blocks: Blocks) -> Weights:
    """16 bytes of scales, 64 bytes of 2-bit weights, d f16, dmin f16.

    A byte of scales serves 16 weights: scale below, min above; weight = (d * scale) * q - dmin * min. Each 32 bytes
    of weights hold four runs of 32 weights, the first in the lowest bits.
    """
    scales = blocks[:, :16]
    q = fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scale: Weights = half(blocks, 80) * (scales & np.uint8(15))
    minimum: Weights = half(blocks, 82) * (scales >> np.uint8(4))
    weights: Weights = scale[:, :, None] * q - minimum[:, :, None]
    return weights.reshape(-1, 256)


def _q3_k(blocks: Blocks) -> Weights:
    """32 bytes of high bits, 64 bytes of 2-bit low parts, 12 bytes of 6-bit scales, d f16.

    High bit k of byte j belongs to weight 32 * k + j. A scale serves 16 weights and is stored plus 32: its low four
    bits are in bytes 0 to 7 (scales 0 to 7 below, 8 to 15 above), its high two in bytes 8 to 11 (four scales a byte:
    j, j + 4, j + 8, j + 12). weight = d * (scale - 32) * (low + 4 * high - 4).
    """
    high = fields(blocks[:, None, :32], 1).reshape(-1, 16, 16)
    low = fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    q = (low | (high << np.uint8(2))).view(np.int8) - np.int8(4)
    scale_low = fields(blocks[:, None, 96:104], 4).reshape(-1, 16)
    scale_high = fields(blocks[:, None, 104:108], 2).reshape(-1, 16)
    scale = (scale_low | (scale_high << np.uint8(4))).view(np.int8) - np.int8(32)
    weights: Weights = (half(blocks, 108) * scale)[:, :, None] * q
    return weights.reshape(-1, 256)


def _six_bit_scales(blocks: Blocks) -> tuple[Weights, Weights]:
    """Read d f16, dmin f16 and 12 bytes of eight 6-bit scales and mins: (d * scale, dmin * min), each [N, 8, 1].

    Bytes 0 to 3 hold scales 0 to 3 and bytes 4 to 7 mins 0 to 3 in their low six bits; the high two are the upper bits
    of scales and mins 4 to 7, whose low four are in bytes 8 to 11 (scale below, min above).
    """
    first, second, low = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = np.hstack([first & np.uint8(63), (low & np.uint8(15)) | ((first >> np.uint8(6)) << np.uint8(4))])
    minimum = np.hstack([second & np.uint8(63), (low >> np.uint8(4)) | ((second >> np.uint8(6)) << np.uint8(4))])
    return (half(blocks, 0) * scale)[:, :, None], (half(blocks, 2) * minimum)[:, :, None]


def _q5_k(blocks: Blocks) -> Weights:
    """As Q4_K, with 32 bytes of fifth bits before the weights: bit k of byte j belongs to weight 32 * k + j."""
    scale, minimum = _six_bit_scales(blocks)
    high = fields(blocks[:, None, 16:48], 1).reshape(-1, 8, 32)
    low = fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return (scale * (low | (high << np.uint8(4))) - minimum).reshape(-1, 256)


def _q6_k(blocks: Blocks) -> Weights:
    """128 bytes of low nibbles, 64 bytes of 2-bit high parts, 16 int8 scales (one for 16 weights), d f16.

    Each half block of 128 weights has 64 bytes of nibbles (weights 0 to 63 below, 64 to 127 above) and 32 bytes of
    high parts (four runs of 32, the first in the lowest bits); weight = (d * scale) * (q - 32).
    """
    low = fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 16, 16)
    high = fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    q = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    scale = half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (scale[:, :, None] * q).reshape(-1, 256)


# What follows says the grid that a type is on, which may be kept: whole numbers, and their scales.


def _q4_0(blocks: Blocks) -> tuple[Values, Weights]:
    """d f16, 16 bytes: byte j holds weight j below and weight j + 16 above; weight = d * (q - 8)."""
    return fields(blocks[:, None, 2:], 4).reshape(-1, 32).view(np.int8) - np.int8(8), half(blocks, 0)


def _q8_0(blocks: Blocks) -> tuple[Values, Weights]:
    """d f16, 32 int8; weight = d * q."""
    return blocks[:, 2:].view(np.int8), half(blocks, 0)


def _q4_1(blocks: Blocks) -> tuple[Blocks, Weights, Weights]:
    """d f16, m f16, 16 bytes as in Q4_0; weight = d * q + m."""
    return fields(blocks[:, None, 4:], 4).reshape(-1, 32), half(blocks, 0), half(blocks, 2)


def _q4_k(blocks: Blocks) -> tuple[Blocks, Weights, Weights]:
    """d, dmin and 6-bit scales (one for 32 weights), 128 bytes of weights; weight = (d * scale) * q - dmin * min.

    Each 32 bytes of weights hold two runs of 32 weights, the first in the low nibbles.
    """
    scale, minimum = _six_bit_scales(blocks)
    return fields(blocks[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32), scale, -minimum


def _mxfp4(blocks: Blocks) -> tuple[Values, Weights]:
    """One byte of exponent (E8M0), 16 bytes of E2M1 in the order of Q4_0."""
    return E2M1_DOUBLED[fields(blocks[:, None, 1:], 4).reshape(-1, 32)], half_of_power(blocks[:, :1])


# Halves of what a byte says as a scale: E4M3 without its sign, and 0 for what is no number.
_HALVES_OF_UE4M3 = (np.arange(128, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32) / 2).tolist()
_HALVES = np.array([*_HALVES_OF_UE4M3[:127], 0, *_HALVES_OF_UE4M3[:127], 240], np.float32)


def _nvfp4(blocks: Blocks) -> tuple[Values, Weights]:
    """Four scales, and 32 bytes of E2M1: of each 16 weights the first eight in the lower halves."""
    values = E2M1_DOUBLED[fields(blocks[:, 4:].reshape(-1, 4, 8), 4)]
    return values.reshape(-1, 4, 16), _HALVES[blocks[:, :4]][..., None]


# Of the types in tables, those that have a scale for 32 weights or more: 8 bits in blocks of 16 are slow.
_IN_8_BITS = ("IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "Q1_0", "Q2_0")
# Types whose weights are scale * value: the bits of a value, and what reads values and scales.
_SYMMETRIC: Mapping[str, tuple[int, Callable[[Blocks], tuple[Values, Weights]]]] = {
    "Q4_0": (4, _q4_0),
    "Q8_0": (8, _q8_0),
    "MXFP4": (8, _mxfp4),
    "NVFP4": (8, _nvfp4),
    **{name: (8, VALUES_AND_SCALES[name]) for name in _IN_8_BITS},
}
# Types whose weights are scale * value + lowest: values of 4 bits, scales, and the lowest.
_LEVELS: Mapping[str, Callable[[Blocks], tuple[Blocks, Weights, Weights]]] = {
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
}


def _scaled(values_and_scales: Callable[[Blocks], tuple[Values, Weights]]) -> Callable[[Blocks], Weights]:
    def unpack(blocks: Blocks) -> Weights:
        values, scales = values_and_scales(blocks)
        return (scales * values).reshape(len(blocks), -1)

    return unpack


def _above_lowest(levels: Callable[[Blocks], tuple[Blocks, Weights, Weights]]) -> Callable[[Blocks], Weights]:
    def unpack(blocks: Blocks) -> Weights:
        values, scales, lowest = levels(blocks)
        return (scales * values + lowest).reshape(len(blocks), -1)

    return unpack


def _looked_up(name: str, block_bytes: int, block_size: int = 256) -> TensorType:
    unpack = _scaled(VALUES_AND_SCALES[name])
    return TensorType(name=name, block_size=block_size, block_bytes=block_bytes, unpack=unpack)


# ggml's type ids (enum ggml_type in ggml.h).
TENSOR_TYPES: Mapping[int, TensorType] = {
    0: TensorType(name="F32", block_size=1, block_bytes=4, unpack=_float32),
    1: TensorType(name="F16", block_size=1, block_bytes=2, unpack=_float16),
    2: TensorType(name="Q4_0", block_size=32, block_bytes=18, unpack=_scaled(_q4_0)),
    3: TensorType(name="Q4_1", block_size=32, block_bytes=20, unpack=_above_lowest(_q4_1)),
    6: TensorType(name="Q5_0", block_size=32, block_bytes=22, unpack=_q5_0),
    7: TensorType(name="Q5_1", block_size=32, block_bytes=24, unpack=_q5_1),
    8: TensorType(name="Q8_0", block_size=32, block_bytes=34, unpack=_scaled(_q8_0)),
    10: TensorType(name="Q2_K", block_size=256, block_bytes=84, unpack=_q2_k),
    11: TensorType(name="Q3_K", block_size=256, block_bytes=110, unpack=_q3_k),
    12: TensorType(name="Q4_K", block_size=256, block_bytes=144, unpack=_above_lowest(_q4_k)),
    13: TensorType(name="Q5_K", block_size=256, block_bytes=176, unpack=_q5_k),
    14: TensorType(name="Q6_K", block_size=256, block_bytes=210, unpack=_q6_k),
    16: _looked_up("IQ2_XXS", 66),
    17: _looked_up("IQ2_XS", 74),
    18: _looked_up("IQ3_XXS", 98),
    19: _looked_up("IQ1_S", 50),
    20: _looked_up("IQ4_NL", 18, block_size=32),
    21: _looked_up("IQ3_S", 110),
    22: _looked_up("IQ2_S", 82),
    23: _looked_up("IQ4_XS", 136),
    29: _looked_up("IQ1_M", 56),
    30: TensorType(name="BF16", block_size=1, block_bytes=2, unpack=_bfloat16),
    34: _looked_up("TQ1_0", 54),
    35: _looked_up("TQ2_0", 66),
    39: TensorType(name="MXFP4", block_size=32, block_bytes=17, unpack=_scaled(_mxfp4)),
    40: TensorType(name="NVFP4", block_size=64, block_bytes=36, unpack=_scaled(_nvfp4)),
    41: _looked_up("Q1_0", 18, block_size=128),
    42: _looked_up("Q2_0", 18, block_size=64),
}

# What a refused type is called: people know a file by these names, not by the ids.
UNSUPPORTED_TYPE_NAMES: Mapping[int, str] = {
    9: "Q8_1",
    15: "Q8_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    # Of 2024, in another order of rows; llama.cpp dropped them too.
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "I2_S of bitnet.cpp",  # and for some months of 2024 llama.cpp's IQ4_NL_4_4
}
FIRST_OF_IK_LLAMA = 96  # IQ4_K and its like: https://github.com/ikawrakow/ik_llama.cpp, ggml/include/ggml.h

_TYPES_BY_NAME = {tensor_type.name: tensor_type for tensor_type in TENSOR_TYPES.values()}

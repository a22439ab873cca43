"""Tensor types of GGUF that look their weights up in tables: ggml's IQ types, its ternary ones, and that of one bit.

A code stands for one, 4 or 8 weights. The tables, in data/codebooks.npz, are those of ggml-common.h (MIT licence, the
ggml authors). Each type gives whole numbers int8 [N, G, L] and scales float32 [N, G, 1]: weight = scale * value.
Shapes: N blocks, G groups of a block, L weights of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from edgelm_export.packed.gguf_blocks import Blocks, Weights, fields, half, in_turn

Values = NDArray[np.int8]

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


@cache
def _table(name: str) -> Values:
    """Return what each code of a type stands for: int8 [codes, weights of one]."""
    with resources.files("edgelm_export").joinpath("data", "codebooks.npz").open("rb") as file:
        table: Values = np.load(file, allow_pickle=False)[name]
    return table


@cache
def _even_signs() -> Values:
    """Return the signs of 8 weights for 7 stored bits, lowest first: of the minuses there is an even number."""
    bits = np.unpackbits(np.arange(128, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    bits[:, 7] = bits.sum(axis=1) % 2
    return 1 - 2 * bits.astype(np.int8)


def _signs(stored: Blocks) -> Values:
    """Turn bytes [N, B] into signs [N, B, 8], the lowest bit first: a set bit is a minus."""
    bits = np.unpackbits(stored, axis=1, bitorder="little").reshape(len(stored), -1, 8)
    return 1 - 2 * bits.view(np.int8)


def _words(blocks: Blocks, start: int, stop: int, kind: str) -> NDArray[np.uint32]:
    return np.ascontiguousarray(blocks[:, start:stop]).view(kind).astype(np.uint32)


def _grouped(values: Values, scales: Weights) -> tuple[Values, Weights]:
    """Spread the values of the blocks over as many groups as there are scales [N, G] of a block."""
    return values.reshape(*scales.shape, -1), scales[:, :, None]


def _sevens(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Split words [N, G] into four fields of 7 bits, lowest first: [N, G, 4]. The highest four bits are a scale."""
    return (words[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32)) & np.uint32(127)


def _iq2_xxs(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, and for each 32 weights 4 bytes of codes and a word of four signs and a scale."""
    words = _words(blocks, 2, 66, "<u4").reshape(len(blocks), 8, 2)
    codes = np.ascontiguousarray(words[:, :, 0], "<u4").view(np.uint8).reshape(len(blocks), 8, 4)
    values = _table("IQ2_XXS")[codes] * _even_signs()[_sevens(words[:, :, 1])]
    return _grouped(values, half(blocks, 0) * (_scale_of(words[:, :, 1]) * np.float32(0.25)))


def _scale_of(words: NDArray[np.uint32]) -> Weights:
    return np.float32(0.5) + (words >> 28).astype(np.float32)


def _iq2_xs(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 32 words with 9 bits of a code and 7 of its signs, and 8 bytes of scales, one for 16 weights."""
    words = _words(blocks, 2, 66, "<u2")
    values = _table("IQ2_XS")[words & 511] * _even_signs()[words >> 9]
    scales = np.float32(0.5) + in_turn(blocks[:, 66:], 4)
    return _grouped(values, half(blocks, 0) * (scales * np.float32(0.25)))


def _iq2_s(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 32 bytes of codes, 32 of signs, 8 of high two bits of codes, 8 of scales, one for 16 weights."""
    codes = blocks[:, 2:34].astype(np.uint16) | (in_turn(blocks[:, 66:74], 2).astype(np.uint16) << 8)
    values = _table("IQ2_S")[codes] * _signs(blocks[:, 34:66])
    scales = np.float32(0.5) + in_turn(blocks[:, 74:], 4)
    return _grouped(values, half(blocks, 0) * (scales * np.float32(0.25)))


def _iq3_xxs(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 64 bytes of codes of 4 weights, and for each 32 weights a word of four signs and a scale."""
    words = _words(blocks, 66, 98, "<u4")
    values = _table("IQ3_XXS")[blocks[:, 2:66]].reshape(-1, 8, 4, 8) * _even_signs()[_sevens(words)]
    return _grouped(values, half(blocks, 0) * (_scale_of(words) * np.float32(0.5)))


def _iq3_s(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 64 bytes of codes of 4 weights, 8 of ninth bits, 32 of signs, 4 of scales, one for 32 weights."""
    codes = blocks[:, 2:66].astype(np.uint16) | (in_turn(blocks[:, 66:74], 1).astype(np.uint16) << 8)
    values = _table("IQ3_S")[codes].reshape(-1, 32, 8) * _signs(blocks[:, 74:106])
    return _grouped(values, half(blocks, 0) * (1 + 2 * in_turn(blocks[:, 106:], 4).astype(np.float32)))


def _iq1_s(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 32 bytes of codes, and for each 32 weights a word: four times three high bits, a scale, which way.

    A weight is scale * (-1, 0 or 1, and an eighth more or less), so eighths are whole numbers.
    """
    words = _words(blocks, 34, 50, "<u2")
    high = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint32)) & 7
    codes = blocks[:, 2:34] | (high.reshape(len(blocks), -1) << 8)
    shift = np.where(words & 0x8000, np.int8(-1), np.int8(1))[:, :, None, None]
    values = _table("IQ1_S")[codes].reshape(-1, 8, 4, 8) * np.int8(8) + shift
    scales = (2 * ((words >> 12) & 7) + 1).astype(np.float32)
    return _grouped(values, half(blocks, 0) * (scales * np.float32(0.125)))


def _iq1_m(blocks: Blocks) -> tuple[Values, Weights]:
    """Read 32 bytes of codes, 16 of three high bits and which way of each, 4 words of scales, one for 16 weights.

    As IQ1_S. The highest four bits of the words are d, a float16, from the lowest on.
    """
    above, words = in_turn(blocks[:, 32:48], 4), _words(blocks, 48, 56, "<u2")
    codes = blocks[:, :32] | ((above & np.uint8(7)).astype(np.uint16) << 8)
    shift = np.where(above & np.uint8(8), np.int8(-1), np.int8(1))[:, :, None]
    values = _table("IQ1_S")[codes] * np.int8(8) + shift
    d = ((words >> 12) << np.arange(0, 16, 4, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
    scales = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint32)) & 7
    factors = (2 * scales.reshape(len(blocks), -1) + 1).astype(np.float32) * np.float32(0.125)
    return _grouped(values, d.astype(np.uint16).view(np.float16).astype(np.float32)[:, None] * factors)


def _iq4_nl(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 16 bytes of codes of one weight, in the order of Q4_0."""
    return _grouped(_IQ4[fields(blocks[:, None, 2:], 4)], half(blocks, 0))


def _iq4_xs(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, a word and 4 bytes of high and low bits of eight scales, one for 32 weights, stored plus 32.

    Then 128 bytes of codes of one weight, each 16 of them in the order of Q4_0.
    """
    scales = in_turn(blocks[:, 4:8], 4) | (in_turn(blocks[:, 2:4], 2) << np.uint8(4))
    values = _IQ4[fields(blocks[:, 8:].reshape(-1, 8, 16), 4)]
    return _grouped(values, half(blocks, 0) * (scales.view(np.int8) - np.int8(32)))


def _tq2_0(blocks: Blocks) -> tuple[Values, Weights]:
    """Read 64 bytes of 2-bit weights plus one, each 32 as four runs of 32, the first in the lowest bits; d f16."""
    values = fields(blocks[:, :64].reshape(-1, 2, 32), 2).view(np.int8) - np.int8(1)
    return _grouped(values, np.repeat(half(blocks, 64), 2, axis=1))


def _tq1_0(blocks: Blocks) -> tuple[Values, Weights]:
    """Read 32, 16 and 4 bytes of base-3 digits plus one, of five weights each and of four; d f16.

    A byte is a fraction of 256, whose digits come in turn: three times what is left of it, over 256.
    """
    parts = ((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4))
    powers = np.array([1, 3, 9, 27, 81], np.uint8)
    left = [(part[:, None] * powers[:digits, None]).reshape(len(blocks), -1) for part, digits in parts]
    digits = (np.concatenate(left, axis=1).astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    return _grouped(digits.astype(np.int8) - np.int8(1), np.repeat(half(blocks, 52), 2, axis=1))


def _q1_0(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 16 bytes of one bit a weight, the lowest first: a set bit is a plus."""
    return _grouped(in_turn(blocks[:, 2:], 1).view(np.int8) * np.int8(2) - np.int8(1), half(blocks, 0))


def _q2_0(blocks: Blocks) -> tuple[Values, Weights]:
    """Read d f16, 16 bytes of 2-bit weights plus one, the lowest bits first."""
    return _grouped(in_turn(blocks[:, 2:], 2).view(np.int8) - np.int8(1), half(blocks, 0))


# What a type's blocks uint8 [N, bytes] hold.
VALUES_AND_SCALES: Mapping[str, Callable[[Blocks], tuple[Values, Weights]]] = {
    "IQ1_S": _iq1_s,
    "IQ1_M": _iq1_m,
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ2_S": _iq2_s,
    "IQ3_XXS": _iq3_xxs,
    "IQ3_S": _iq3_s,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
}

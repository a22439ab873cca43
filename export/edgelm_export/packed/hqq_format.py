"""Matrices that HQQ quantized: integers with a scale and a zero point, both of floats, for each group of weights.

A matrix [N, K] is laid out anew as [R, C] for that: each row is a group (axis 1), or each column (axis 0). Its first
rows stand in the highest bits of the words, the last in the lowest. Each matrix says by itself how it is packed.
Sources: Quantizer, BitPack and HQQLinear.state_dict of hqq 0.2.8, which transformers saves as it is.
Shapes: N outputs, K inputs, R rows and C columns of the layout, P rows of words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_scheme import BLOCK_SIZES
from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import FLOATS, QuantizedBlocks, Read, shown

# The name of a packing -> bits of an integer, how many are in a word, and the type of that.
_PACKINGS = {
    "8bit_u8": (8, 1, "U8"),
    "4bit_u8": (4, 2, "U8"),
    "3bit_32": (3, 10, "I32"),
    "2bit_u8": (2, 4, "U8"),
    "1bit_u8": (1, 8, "U8"),
}
_VALUES, _WHOLE = "W_q", ("I32", "I64")
# What else hqq saves of each matrix; all that decides what it stands for is in the parts that are read.
_PASSED_OVER = (
    *("nbits", "group_size", "unpack_view_dtype", "view_as_float", "quant_scale", "quant_zero", "compute_dtype"),
    *("offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize", "round_zero"),
)


@dataclass(frozen=True, kw_only=True)
class HQQMatrix:
    """One matrix in its parts. packing: a row of `_PACKINGS`. layout: [R, C]."""

    stem: str
    shape: tuple[int, int]
    packing: str
    axis: int
    layout: tuple[int, int]

    @property
    def type(self) -> str:
        """What the matrix is stored as, such as "HQQ-4bit"."""
        return f"HQQ-{_PACKINGS[self.packing][0]}bit"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return (*self.stored_types, *(f"{self.stem}.{part}" for part in _PASSED_OVER))

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        types = {_VALUES: (_PACKINGS[self.packing][2],), "scale": FLOATS, "zero": FLOATS}
        types |= {"shape": _WHOLE, "axis": _WHOLE, "packing": ("U8",)}
        return {f"{self.stem}.{part}": each for part, each in types.items()}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        weight: NDArray[np.float32] = self._values(read).astype(np.float32)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            weight -= read(f"{self.stem}.zero").astype(np.float32)
            weight *= read(f"{self.stem}.scale").astype(np.float32)
        return weight.reshape(self.shape)

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where its groups are none of those at speed, or begin further
        from a whole zero point than offsets are for.
        """
        (N, K), size, bits = self.shape, self.layout[1], _PACKINGS[self.packing][0]
        if self.axis != 1 or bits not in (4, 8) or size not in BLOCK_SIZES[bits] or K % size:
            return None
        scales, zeros = (read(f"{self.stem}.{part}").astype(np.float32).reshape(N, -1) for part in ("scale", "zero"))
        whole = np.clip(np.rint(zeros), 0, (1 << bits) - 1)
        if not (np.abs(zeros - whole) <= 0.5).all():
            return None
        middle = 1 << (bits - 1)
        with np.errstate(all="ignore"):  # as above
            offsets = None if (zeros == whole).all() else (whole - zeros) * scales
        return QuantizedBlocks(
            bits=bits,
            block_size=size,
            values=(self._values(read) - middle).astype(np.int8).reshape(N, -1, size),
            scales=scales,
            zero_points=None if (whole == middle).all() else (whole - middle).astype(np.int8),
            offsets=offsets,
        )

    def _values(self, read: Read) -> NDArray[np.int32]:
        bits, count, _ = _PACKINGS[self.packing]
        words = read(f"{self.stem}.{_VALUES}").astype(np.int32)
        values = [(words >> (bits * i)) & ((1 << bits) - 1) for i in reversed(range(count))]
        return np.concatenate(values)[: self.layout[0]]


def hqq_matrices(present: Mapping[str, tuple[int, ...]], read: Read, where: object) -> dict[str, HQQMatrix]:
    """Find such matrices of a folder, under the names of plain ones.

    Raises:
        CheckpointError: the parts of one are not all there, or do not fit each other.
    """
    found = {}
    for name in present:
        stem = name.removesuffix(f".{_VALUES}")
        if stem == name:
            continue
        matrix = _matrix(stem, present, read)
        if matrix is None:
            parts = (_VALUES, "scale", "zero", "shape", "axis", "packing")
            told = ", ".join(f"{part} is {shown(present.get(f'{stem}.{part}'))}" for part in parts)
            raise CheckpointError(
                f"{where}: the tensors of {stem} do not fit each other as hqq in {', '.join(_PACKINGS)}: {told}. "
                "Download the model again, or take its unquantized folder."
            )
        found[f"{stem}.weight"] = matrix
    return found


def _matrix(stem: str, present: Mapping[str, tuple[int, ...]], read: Read) -> HQQMatrix | None:
    """Read how one matrix is packed; None where its parts do not fit each other."""
    words, scale = (present.get(f"{stem}.{part}", ()) for part in (_VALUES, "scale"))
    of_packing = present.get(f"{stem}.packing", ())
    facts = present.get(f"{stem}.shape") == (2,) and present.get(f"{stem}.axis") == () and len(of_packing) == 1
    if not facts or of_packing[0] > 16 or not len(words) == len(scale) == 2:
        return None
    packing = read(f"{stem}.packing").tobytes().decode("latin-1")
    axis, shape = read(f"{stem}.axis").tolist(), read(f"{stem}.shape").tolist()
    if packing not in _PACKINGS or axis not in (0, 1) or not all(type(size) is int and size > 0 for size in shape):
        return None
    (N, K), (P, C), count = shape, words, _PACKINGS[packing][1]
    R = scale[0] if axis == 1 else N * K // max(1, C)
    fits = scale == ((R, 1) if axis == 1 else (1, C)) and scale == present.get(f"{stem}.zero")
    if not fits or R * C != N * K or -(-R // count) != P:
        return None
    return HQQMatrix(stem=stem, shape=(N, K), packing=packing, axis=axis, layout=(R, C))

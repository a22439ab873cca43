"""Matrices of floats in 4 bits (E2M1) with a scale for each block of inputs: NVFP4 and MXFP4.

NVFP4 has blocks of 16, whose scales are floats of 8 bits (E4M3), and one float32 for all of a matrix. ModelOpt
multiplies by that, compressed-tensors divides by it. MXFP4 has blocks of 32, whose scales are powers of two (E8M0).
Doubled, the values are whole numbers up to 12, which 8 bits hold exactly. What activations were rounded to where the
model was made (input_scale, input_global_scale) is passed over.
Sources: NVFP4QTensor of nvidia-modelopt 0.47, nvfp4-pack-quantized and mxfp4-pack-quantized of compressed-tensors 0.20,
Pack_fp4 of amd-quark 0.13.
Shapes: N outputs, K inputs, G blocks of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks, Read, shown
from edgelm_export.packed.float8_format import FLOAT8
from edgelm_export.packed.gguf_blocks import in_turn
from edgelm_export.packed.microscaling import E2M1_DOUBLED, half_of_power


@dataclass(frozen=True, kw_only=True)
class _Format:
    """The names of a matrix's parts. values: two numbers a byte, the first in the lower half. of_all: the float32 for
    all of a matrix, None where there is none. divides: by it. activations: what is passed over.
    """

    type: str
    block_size: int
    scale_type: str
    values: str
    of_all: str | None
    divides: bool
    activations: str


_SCALES = "weight_scale"
_COMPRESSED = "weight_packed"
_FORMATS = (
    _Format(
        type="NVFP4", block_size=16, scale_type=FLOAT8,
        values="weight", of_all="weight_scale_2", divides=False, activations="input_scale",
    ),
    _Format(
        type="NVFP4", block_size=16, scale_type=FLOAT8,
        values=_COMPRESSED, of_all="weight_global_scale", divides=True, activations="input_global_scale",
    ),
    _Format(
        type="MXFP4", block_size=32, scale_type="U8",
        values="weight", of_all=None, divides=False, activations="input_scale",
    ),
    _Format(
        type="MXFP4", block_size=32, scale_type="U8",
        values=_COMPRESSED, of_all=None, divides=False, activations="input_global_scale",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Float4Matrix:
    """One matrix of E2M1, and the scales of its blocks."""

    stem: str
    shape: tuple[int, int]
    format: _Format

    @property
    def type(self) -> str:
        """What the matrix is stored as."""
        return self.format.type

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return (*self.stored_types, f"{self.stem}.{self.format.activations}")

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        types = {self.format.values: ("U8",), _SCALES: (self.format.scale_type,)}
        if self.format.of_all is not None:
            types[self.format.of_all] = ("F32",)
        return {f"{self.stem}.{part}": each for part, each in types.items()}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        blocks = self.blocks(read)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            return (blocks.values * blocks.scales[..., None]).reshape(self.shape)

    def blocks(self, read: Read) -> QuantizedBlocks:
        """Return the matrix in MatMulNBits' blocks, on its own grid."""
        codes = in_turn(read(f"{self.stem}.{self.format.values}"), 4)
        values = E2M1_DOUBLED[codes.reshape(self.shape[0], -1, self.format.block_size)]
        return QuantizedBlocks(
            bits=8, block_size=self.format.block_size, values=values, scales=self._halves_of_scales(read)
        )

    def _halves_of_scales(self, read: Read) -> NDArray[np.float32]:
        scales = read(f"{self.stem}.{_SCALES}")
        if self.format.of_all is None:
            return half_of_power(scales)
        of_all = np.float32(read(f"{self.stem}.{self.format.of_all}").reshape(-1)[0])
        with np.errstate(all="ignore"):
            widened: NDArray[np.float32] = scales.astype(np.float32)
            return (widened / of_all if self.format.divides else widened * of_all) / np.float32(2)


def float4_matrices(present: Mapping[str, tuple[int, ...]], where: object) -> dict[str, Float4Matrix]:
    """Find such matrices of a folder by the names of their parts, under the names of plain ones.

    present: the shapes of its tensors.

    Raises:
        CheckpointError: the parts of one do not fit each other.
    """
    found = {}
    for name, shape in present.items():
        stem, _, part = name.rpartition(".")
        format_ = _format_of(stem, part, present)
        if format_ is None:
            continue
        matrix = Float4Matrix(stem=stem, shape=(shape[0], 2 * shape[1]) if len(shape) == 2 else (0, 0), format=format_)
        _check(matrix, present, where)
        found[f"{stem}.weight"] = matrix
    return found


def _format_of(stem: str, part: str, present: Mapping[str, tuple[int, ...]]) -> _Format | None:
    """Tell by the parts that lie beside one; integers in compressed-tensors' form have a weight_shape."""
    if part == _COMPRESSED and f"{stem}.weight_shape" in present:
        return None
    found = [format_ for format_ in _FORMATS if part == format_.values]
    named = next((each for each in found if each.of_all is not None and f"{stem}.{each.of_all}" in present), None)
    if named is not None or not found:
        return named
    format_ = found[-1]
    # One `weight` of bytes with scales for 16 of them is MXFP4; else it is of 8 bits, or plain.
    shape, scales = present[f"{stem}.{part}"], present.get(f"{stem}.{_SCALES}", ())
    is_packed = part == _COMPRESSED or (len(shape) == len(scales) == 2 and shape[1] * 2 == scales[1] * 32)
    return format_ if is_packed else None


def _check(matrix: Float4Matrix, present: Mapping[str, tuple[int, ...]], where: object) -> None:
    (N, K), format_ = matrix.shape, matrix.format
    found = {name: present.get(name) for name in matrix.stored_types}
    wanted: list[set[tuple[int, ...]]] = [{(N, K // 2)}, {(N, K // format_.block_size)}, {(), (1,)}]
    fits = all(shape in shapes for shape, shapes in zip(found.values(), wanted, strict=False))
    if not (fits and N and K and K % format_.block_size == 0):
        told = ", ".join(f"{name.rpartition('.')[2]} is {shown(shape)}" for name, shape in found.items())
        raise CheckpointError(
            f"{where}: the tensors of {matrix.stem} do not fit each other as {format_.type}, which has a scale for "
            f"{format_.block_size} weights of a row: {told}. Download the model again."
        )

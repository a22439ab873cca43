"""Matrices as torchao saves them in safetensors: integers of 8 or fewer bits, each in a byte, or FP8, with scales.

Beside `X._weight_qdata` lie `X._weight_scale`, of a row, of a group of inputs or of a block, and for integers
`X._weight_zero_point`. What kind they are says the class of the settings.
Source: torchao.prototype.safetensors of torchao 0.18 (Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor).
Shapes: N outputs, K inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import FLOATS, QuantizedBlocks, Read, shown
from edgelm_export.packed.float8_format import FLOAT8
from edgelm_export.packed.grid_of_groups import Grid

_VALUES, _SCALE, _ZERO = "._weight_qdata", "._weight_scale", "._weight_zero_point"
_INTEGERS = (
    "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "Int8DynamicActivationIntxWeightConfig",
    "IntxWeightOnlyConfig",
)  # fmt: skip
_FLOATS = ("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig")


@dataclass(frozen=True, kw_only=True)
class TorchAOMatrix:
    """One matrix. bits: of its integers, which take 4 or 8 in blocks; None: it is FP8."""

    stem: str
    shape: tuple[int, int]
    bits: int | None

    @property
    def type(self) -> str:
        """What the matrix is stored as."""
        return "FP8" if self.bits is None else f"TORCHAO-{self.bits}bit"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return tuple(self.stored_types)

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        values = (FLOAT8,) if self.bits is None else ("I8",)
        types = {_VALUES: values, _SCALE: FLOATS, **({} if self.bits is None else {_ZERO: ("I8",)})}
        return {f"{self.stem}{part}": each for part, each in types.items()}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        if self.bits is not None:
            return self._grid(read, self.bits).weight()
        weight: NDArray[np.float32] = read(f"{self.stem}{_VALUES}").astype(np.float32)
        scales = read(f"{self.stem}{_SCALE}").astype(np.float32)
        for axis in (0, 1):
            scales = scales.repeat(weight.shape[axis] // scales.shape[axis], axis)
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            return weight * scales

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where it is of floats, or its groups are of another size."""
        return None if self.bits is None else self._grid(read, self.bits).blocks()

    def _grid(self, read: Read, bits: int) -> Grid:
        middle, K = 1 << (bits - 1), self.shape[1]
        scales = read(f"{self.stem}{_SCALE}").astype(np.float32)
        zeros = read(f"{self.stem}{_ZERO}").astype(np.int32)
        values = read(f"{self.stem}{_VALUES}").astype(np.int32)
        if values.size and not -middle <= min(values.min(), zeros.min()) <= max(values.max(), zeros.max()) < middle:
            raise CheckpointError(
                f"{self.stem}{_VALUES} has integers from {values.min()} to {values.max()}, and the settings say "
                f"{bits} bits. Download the model again."
            )
        groups = np.arange(K) // (K // scales.shape[1])
        return Grid(bits=bits, values=values + middle, zeros=zeros + middle, scales=scales, groups=groups)


def torchao_matrices(
    config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], where: object
) -> dict[str, TorchAOMatrix] | None:
    """Find such matrices of a folder, under the names of plain ones; None where its settings are of another kind.

    Raises:
        CheckpointError: the parts of one do not fit each other.
    """
    kinds = config.get("quant_type")
    settings = kinds.get("default") if isinstance(kinds, Mapping) and kinds.keys() == {"default"} else None
    if not isinstance(settings, Mapping) or settings.get("_type") not in (*_INTEGERS, *_FLOATS):
        return None
    bits = None if settings["_type"] in _FLOATS else _bits(settings.get("_data"))
    found = {}
    for name, shape in present.items():
        stem = name.removesuffix(_VALUES)
        if stem == name:
            continue
        scales, zeros = (present.get(f"{stem}{part}") for part in (_SCALE, _ZERO))
        fits = len(shape) == 2 and scales is not None and len(scales) == 2 and all((*shape, *scales))
        fits = fits and all(size % of == 0 for size, of in zip(shape, scales or (), strict=True))
        if not fits or (bits is not None and (scales != (shape[0], *(scales or ())[1:]) or zeros != scales)):
            raise CheckpointError(
                f"{where}: the tensors of {stem} do not fit each other: {name} is {list(shape)}, its scale "
                f"{shown(scales)}, its zero point {shown(zeros)}. Download the model again."
            )
        found[f"{stem}.weight"] = TorchAOMatrix(stem=stem, shape=(shape[0], shape[1]), bits=bits)
    return found


def _bits(settings: object) -> int:
    """Return 4 where the settings of a class ask for that, else the 8 that hold all integers."""
    dtype = settings.get("weight_dtype") if isinstance(settings, Mapping) else None
    return 4 if isinstance(dtype, Mapping) and dtype.get("_data") == "int4" else 8

"""Matrices of a BitNet: -1, 0 and 1 with a scale for each, four rows in one of bytes, or floats that stand for those.

Source: transformers' integration of BitNet. Shapes: N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import QuantizedBlocks, Read
from edgelm_export.packed.grid_of_groups import Grid

_SMALLEST_SCALE = 1e-5  # of a matrix that is rounded


@dataclass(frozen=True, kw_only=True)
class TernaryMatrix:
    """One matrix of -1, 0 and 1 times a scale.

    is_packed: four rows are in each of bytes; else it is of floats, which are rounded at the mean of their sizes.
    divides: the stored scale divides.
    """

    stem: str
    shape: tuple[int, int]
    is_packed: bool
    divides: bool

    type: ClassVar[str] = "BitNet"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return (f"{self.stem}.weight", f"{self.stem}.weight_scale")

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        return self._grid(read).weight()

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where no block of a size that is fast divides its inputs."""
        return self._grid(read).blocks()

    def _grid(self, read: Read) -> Grid:
        N, K = self.shape
        stored = read(f"{self.stem}.weight")
        if self.is_packed:
            stored = stored.astype(np.uint8)
            signs = np.concatenate([(stored >> shift) & 3 for shift in (0, 2, 4, 6)]).astype(np.int32) - 1
            scale = np.float32(read(f"{self.stem}.weight_scale").astype(np.float32).reshape(-1)[0])
            with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
                scale = 1 / scale if self.divides else scale
        else:
            weight = stored.astype(np.float32)
            scale = np.maximum(np.abs(weight).mean(dtype=np.float32), np.float32(_SMALLEST_SCALE))
            signs = np.clip(np.rint(weight / scale), -1, 1).astype(np.int32)
        scales = np.full((N, 1), scale, np.float32)
        zeros, groups = np.full((N, 1), 2, np.int32), np.zeros(K, np.int64)
        return Grid(bits=2, values=signs + 2, zeros=zeros, scales=scales, groups=groups)


def ternary_matrices(
    config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], where: object
) -> Mapping[str, TernaryMatrix]:
    """Find the matrices of a BitNet: those with a scale, or, where floats are rounded as it runs, all of layers.

    Raises:
        CheckpointError: it has what is not read of the format.
    """
    is_auto = config.get("linear_class") == "autobitlinear"
    rounds = is_auto and config.get("quantization_mode") == "online"
    for key in ("use_rms_norm", *(("modules_to_not_convert",) if rounds else ())):
        if config.get(key):
            raise CheckpointError(
                f"{where}: quantization_config's {key} is {config[key]!r:.80}, which is not supported."
            )
    matrices: dict[str, TernaryMatrix] = {}
    for name, shape in present.items():
        stem = name.removesuffix(".weight")
        scale = present.get(f"{stem}.weight_scale")
        is_packed = scale is not None
        if scale not in (None, (), (1,)):
            raise CheckpointError(f"{where}: {stem}.weight_scale is {list(scale or ())} instead of one number.")
        if stem != name and len(shape) == 2 and (is_packed or (rounds and stem.endswith("_proj"))):
            rows = 4 * shape[0] if is_packed else shape[0]
            matrices[name] = TernaryMatrix(
                stem=stem, shape=(rows, shape[1]), is_packed=is_packed, divides=is_packed and not is_auto
            )
    return matrices

"""Matrices of integers in 4 bits as nvidia-modelopt writes them for AWQ (W4A16_AWQ).

Two rows are in one of bytes, the first in the lower half, signed and without zero points. By AWQ's scales, which are
those of the channels (pre_quant_scale), the inputs of a matrix are multiplied where no layer before it took them in.
Source: pack_int4_in_uint8 and TensorQuantizer of nvidia-modelopt 0.47. Shapes: N outputs, K inputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.checkpoints.checkpoint import FLOATS, QuantizedBlocks, Read, shown
from edgelm_export.packed.grid_of_groups import Grid


@dataclass(frozen=True, kw_only=True)
class ModelOptMatrix:
    """One matrix in its parts. has_channels: whether its inputs are multiplied by scales of their own."""

    stem: str
    shape: tuple[int, int]
    has_channels: bool

    @property
    def type(self) -> str:
        """What the matrix is stored as; with scales of its inputs by another name, as it is on no grid then."""
        return f"MODELOPT-4bit{' with scales of inputs' if self.has_channels else ''}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that its tensors may have."""
        return tuple(self.stored_types)

    @property
    def stored_types(self) -> dict[str, tuple[str, ...]]:
        """The types that its tensors must have on disk."""
        types = {"weight": ("U8",), "weight_scale": FLOATS, "pre_quant_scale": FLOATS}
        return {f"{self.stem}.{part}": each for part, each in types.items()}

    def weight(self, read: Read) -> NDArray[np.float32]:
        """Return the matrix in float32; `read` gives its tensors."""
        weight = self._grid(read).weight()
        if self.has_channels:
            with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
                weight *= read(f"{self.stem}.pre_quant_scale").astype(np.float32)
        return weight

    def blocks(self, read: Read) -> QuantizedBlocks | None:
        """Return the matrix in MatMulNBits' blocks; None where its groups are of another size, or it has channels."""
        return None if self.has_channels else self._grid(read).blocks()

    def _grid(self, read: Read) -> Grid:
        (N, K), packed = self.shape, read(f"{self.stem}.weight")
        scales = read(f"{self.stem}.weight_scale").astype(np.float32)
        pairs = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
        values = (pairs ^ np.uint8(8)).astype(np.int32).reshape(N, K)  # from 0 to 15, of which 8 is zero
        zeros, groups = np.full(scales.shape, 8, np.int32), np.arange(K) // (K // scales.shape[1])
        return Grid(bits=4, values=values, zeros=zeros, scales=scales, groups=groups)


def modelopt_matrices(
    config: Mapping[str, Any], present: Mapping[str, tuple[int, ...]], where: object
) -> dict[str, ModelOptMatrix] | None:
    """Find such matrices of a folder, under the names of plain ones; None where its settings are of another kind.

    Raises:
        CheckpointError: the parts of one do not fit each other.
    """
    if config.get("quant_method") != "modelopt" or config.get("quant_algo") != "W4A16_AWQ":
        return None
    found = {}
    for name, packed in present.items():
        stem = name.removesuffix(".weight")
        scales, channels = (present.get(f"{stem}.{part}") for part in ("weight_scale", "pre_quant_scale"))
        if stem == name or scales is None:
            continue
        N, K = (2 * packed[0], packed[1]) if len(packed) == 2 else (0, 0)
        of_groups = scales[1] if len(scales) == 2 else 0
        if not (N and of_groups and scales == (N, of_groups) and K % of_groups == 0 and channels in (None, (K,))):
            raise CheckpointError(
                f"{where}: the tensors of {stem} do not fit each other as two rows in one of bytes: weight is "
                f"{shown(packed)}, weight_scale {shown(scales)}, pre_quant_scale {shown(channels)}. Download the model "
                "again."
            )
        found[name] = ModelOptMatrix(stem=stem, shape=(N, K), has_channels=channels is not None)
    return found

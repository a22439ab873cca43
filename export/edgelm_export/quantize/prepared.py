"""PreparedCheckpoint: a checkpoint whose layers a calibration has quantized already, from a folder of its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.files.atomic import rename
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView
from edgelm_export.quantize.keep import as_blocks
from edgelm_export.quantize.packed import PackedWeight

_PARTS = ("packed", "scales", "zero_points")


class PreparedCheckpoint(CheckpointView):
    """Show the matrices of the layers on the grids that a calibration put them on."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        super().__init__(checkpoint)
        self._names: dict[str, Path] = {}
        for path in sorted(folder.glob("layer-*.npz")):
            with np.load(path) as stored:
                self._names |= {key.partition("|")[0]: path for key in stored.files}

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix."""
        return self._checkpoint.rows(name, first, end)

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return a matrix on the grid that the calibration put it on, or on its own where it did not."""
        if name not in self._names:
            return self._checkpoint.quantized_blocks(name, rows)
        with np.load(self._names[name]) as stored:
            bits, block_size, columns = (int(value) for value in stored[f"{name}|layout"])
            parts = {part: stored[f"{name}|{part}"] for part in _PARTS if f"{name}|{part}" in stored.files}
        weight = PackedWeight(bits=bits, block_size=block_size, columns=columns, **{"zero_points": None, **parts})
        return as_blocks(weight).rows(rows)


def layer_path(folder: Path, layer: int) -> Path:
    """Return the file of one layer's results."""
    return folder / f"layer-{layer:05d}.npz"


def save_layer(folder: Path, layer: int, tensors: Mapping[str, PackedWeight]) -> None:
    """Write one layer's results; the file appears when it is whole."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, tensor in tensors.items():
        arrays[f"{name}|layout"] = np.array([tensor.bits, tensor.block_size, tensor.columns])
        for part in _PARTS:
            if getattr(tensor, part) is not None:
                arrays[f"{name}|{part}"] = getattr(tensor, part)
    path = layer_path(folder, layer)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    rename(unfinished, path)

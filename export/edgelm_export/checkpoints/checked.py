"""CheckedCheckpoint: a checkpoint whose tensors are checked, and noted, as they are read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError, ExportError
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.checkpoint_view import CheckpointView

# What is being done, how much of it, out of how much.
Progress = Callable[[str, int, int], None]


class CheckedCheckpoint(CheckpointView):
    """Pass a checkpoint's tensors on; refuse those that are not finite, and report how many were read, as `label`."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None, label: str = "weights") -> None:
        super().__init__(checkpoint)
        self._progress, self._label = progress, label
        self._unread = dict.fromkeys(checkpoint.config.tensor_shapes())  # in their order
        self._total = len(self._unread)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor.

        Raises:
            CheckpointError: it has NaN or infinite values.
        """
        tensor = self._checkpoint.tensor(name)
        self._note(name, tensor)
        return tensor

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix.

        Raises:
            CheckpointError: they have NaN or infinite values.
        """
        rows = self._checkpoint.rows(name, first, end)
        self._note(name, rows)
        return rows

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return the tensor, or some of its rows, on its own grid, where it has one.

        Raises:
            CheckpointError: its scales have NaN or infinite values.
        """
        blocks = self._checkpoint.quantized_blocks(name, rows)
        if blocks is not None:
            self._note(name, blocks.scales if blocks.offsets is None else blocks.scales + blocks.offsets)
        return blocks

    def refuse_unread(self) -> None:
        """Check that a graph was made of every tensor: one that is left out is a part of the model that it lacks.

        The check of the package would not see that, where its oracle lacks that part too.

        Raises:
            ExportError: some were not read.
        """
        if self._unread:
            first, *others = self._unread
            raise ExportError(
                f"The graph has no place for {first}{f' and {len(others)} more tensors' if others else ''} of "
                f"{self.path}, so it would compute something else. Whoever gives a model a new part writes it into "
                "edgelm_export/decoder.py and reference/model.py too (docs/architecture.md)."
            )

    def _note(self, name: str, values: NDArray[np.float32]) -> None:
        if name in self._unread:  # of a table the first of its rows count
            del self._unread[name]
            if self._progress is not None:
                self._progress(self._label, self._total - len(self._unread), self._total)
        # One pass without a temporary. The sum of finite weights may overflow in float32, and does not in float64.
        with np.errstate(all="ignore"):
            is_finite = np.isfinite(np.sum(values)) or np.isfinite(np.sum(values, dtype=np.float64))
        if not is_finite:
            raise CheckpointError(
                f"{self.path} is damaged: {name} has NaN or infinite values. Download the model again; of a run of "
                "training, take an earlier checkpoint."
            )

"""CheckedCheckpoint: a checkpoint whose tensors are checked, and counted, as they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError
from edgelm_export.checkpoint import Checkpoint, QuantizedBlocks

# What is being done, how much of it, out of how much.
Progress = Callable[[str, int, int], None]


class CheckedCheckpoint:
    """Pass a checkpoint's tensors on; refuse those that are not finite, and report how many were read."""

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None) -> None:
        self._checkpoint, self._progress = checkpoint, progress
        self._total, self._read = len(checkpoint.config.tensor_shapes()), 0

    @property
    def config(self) -> ModelConfig:
        """The model's features."""
        return self._checkpoint.config

    @property
    def hf_config(self) -> Mapping[str, Any]:
        """The config.json that transformers reads."""
        return self._checkpoint.hf_config

    @property
    def text_files(self) -> Mapping[str, str]:
        """The tokenizer and its companions."""
        return self._checkpoint.text_files

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the checkpoint comes from."""
        return self._checkpoint.source

    def stored_type(self, name: str) -> str:
        """Name the type that a tensor has on disk."""
        return self._checkpoint.stored_type(name)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor.

        Raises:
            CheckpointError: it has NaN or infinite values.
        """
        tensor = self._checkpoint.tensor(name)
        self._check(name, tensor)
        return tensor

    def quantized_blocks(self, name: str) -> QuantizedBlocks | None:
        """Return the tensor on its own grid, where it has one."""
        blocks = self._checkpoint.quantized_blocks(name)
        if blocks is not None:
            self._check(name, blocks.scales)
        return blocks

    def _check(self, name: str, values: NDArray[np.float32]) -> None:
        # The sum of finite float32 weights stays finite in float64, and is one pass without a temporary.
        if not np.isfinite(np.sum(values, dtype=np.float64)):
            raise CheckpointError(f"The tensor {name} has NaN or infinite values: the checkpoint is damaged.")
        self._read += 1
        if self._progress is not None:
            self._progress("weights", min(self._read, self._total), self._total)

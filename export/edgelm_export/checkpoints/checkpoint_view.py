"""CheckpointView: a checkpoint that shows another one, changed in some way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks


class CheckpointView:
    """Pass everything on; a subclass changes what it is there for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def path(self) -> Path:
        """The file or the folder that it is read from."""
        return self._checkpoint.path

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

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know."""
        return self._checkpoint.notes

    @property
    def head_divisors(self) -> NDArray[np.float32] | None:
        """By what the graph is to divide what the head reads."""
        return self._checkpoint.head_divisors

    @property
    def head_hessian(self) -> NDArray[np.float32] | None:
        """The products X^T X [D, D] of what the head's stored weights meet on a text."""
        return self._checkpoint.head_hessian

    def stored_type(self, name: str) -> str:
        """Name the type that a tensor has on disk."""
        return self._checkpoint.stored_type(name)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor."""
        return self._checkpoint.tensor(name)

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix. Here it is read as a whole; a subclass that can read less says how."""
        return self.tensor(name)[first:end]

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return the tensor, or some of its rows, on its own grid, where it has one."""
        return self._checkpoint.quantized_blocks(name, rows)

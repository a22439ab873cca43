"""Checkpoint: a model's config, tensors and text files, whatever file format they come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig

ALL_ROWS = slice(None)
FLOATS = ("F32", "F16", "BF16")  # as safetensors calls them
# A tensor's name -> the tensor as it is stored, or its entry of one expert.
Read = Callable[[str], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class QuantizedBlocks:
    """A tensor on an integer grid.

    weight[r, b, j] = scales[r, b] * (values[r, b, j] - zero_points[r, b]) + offsets[r, b]

    values: int8 [rows, blocks, block_size], in -2..1 for 2 bits, -8..7 for 4 and -128..127 for 8. scales: float32
    [rows, blocks]. zero_points: int8 [rows, blocks], of the values' range, but for 5 and 6 bits in eighths and quarters
    of a step; None is zero, a symmetric grid. offsets: float32 [rows, blocks], what of a block's least weight no whole
    zero point stands for; None is zero.
    """

    bits: int
    block_size: int
    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int8] | None = None
    offsets: NDArray[np.float32] | None = None

    def rows(self, which: slice | NDArray[np.int64]) -> QuantizedBlocks:
        """Return some rows, or all in another order: a row's blocks go with it, so every weight stays on its grid."""
        return self._taken(which)

    def columns(self, which: NDArray[np.int64]) -> QuantizedBlocks | None:
        """Return the tensor with its columns in another order, where that moves whole blocks; else None."""
        wanted = which.reshape(-1, self.block_size)
        blocks = wanted[:, 0] // self.block_size
        if not np.array_equal(wanted, blocks[:, None] * self.block_size + np.arange(self.block_size)):
            return None
        return self._taken((ALL_ROWS, blocks))

    def _taken(self, which: Any) -> QuantizedBlocks:
        return dataclasses.replace(
            self,
            values=self.values[which],
            scales=self.scales[which],
            zero_points=None if self.zero_points is None else self.zero_points[which],
            offsets=None if self.offsets is None else self.offsets[which],
        )

    def times(self, factor: np.float32 | NDArray[np.float32]) -> QuantizedBlocks:
        """Return the tensor times a factor, or one for each row [rows, 1], which go into the scales."""
        with np.errstate(all="ignore"):  # what is not finite is refused later, by its name
            offsets = None if self.offsets is None else self.offsets * factor
            return dataclasses.replace(self, scales=self.scales * factor, offsets=offsets)


class Checkpoint(Protocol):
    """One model on disk, read tensor by tensor.

    Names and shapes are those of `config.tensor_shapes()`; importers map their source's names to them, completely in
    both directions.
    """

    @property
    def path(self) -> Path:
        """The file or the folder that it is read from."""

    @property
    def config(self) -> ModelConfig:
        """The model's features."""

    @property
    def hf_config(self) -> Mapping[str, Any]:
        """The config.json that transformers reads (without our section)."""

    @property
    def text_files(self) -> Mapping[str, str]:
        """tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json: name -> content."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Provenance for the manifest: format, files with their hashes, and what else the source says of itself."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the text files, for the manifest."""

    @property
    def head_divisors(self) -> NDArray[np.float32] | None:
        """By what the graph is to divide the channels [D] that the head reads, while it stores the head's weights times
        that. `tensor` is without them, and `quantized_blocks` as the graph stores it. None: by nothing.
        """

    @property
    def head_hessian(self) -> NDArray[np.float32] | None:
        """The products X^T X [D, D] of what the head's stored weights meet on a text. None: no text was run."""

    def stored_type(self, name: str) -> str:
        """Name the type a tensor has on disk, such as "F32", "BF16" or "Q4_1"."""

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, widened or dequantized exactly to float32."""

    def rows(self, name: str, first: int, end: int) -> NDArray[np.float32]:
        """Read some rows of a matrix, as `tensor` has them, where all of them would be too much memory."""

    def quantized_blocks(self, name: str, rows: slice = ALL_ROWS) -> QuantizedBlocks | None:
        """Return the tensor, or some of its rows, on its own grid where a package holds that at speed, else None."""


def shown(shape: tuple[int, ...] | None) -> str:
    """Write the shape of a tensor that may not be there, for a message."""
    return "missing" if shape is None else str(list(shape))

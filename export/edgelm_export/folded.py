"""FoldedCheckpoint: a checkpoint with what never changes at run time inside its tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.config import NORM_PLACEMENTS, ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoint import Checkpoint, QuantizedBlocks
from edgelm_export.tensor_map import is_of_norm

# GroupQueryAttention turns heads by tables whose width is a multiple of 8, that is 16 dimensions.
ROTARY_MULTIPLE = 16
_QUERIES_OR_KEYS = re.compile(r"\.self_attn\.[qk]_(proj|norm)\.(weight|bias)$")


def padded_rotary_dim(config: ModelConfig) -> int:
    """Return how many dimensions of a head the graph turns: R, and some by no angle up to a multiple of 16."""
    return -(-config.rotary_dim // ROTARY_MULTIPLE) * ROTARY_MULTIPLE


class FoldedCheckpoint:
    """The same function, for a graph of fewer features.

    1 + weight of a norm is its weight, no residual_multiplier is left, and in each query and key head the halves of the
    part that turns stand where the padded tables of the graph turn them. It costs nothing at run time, and one rounding
    of each changed weight.

    Raises:
        ExportError: there is no weight that could take the residual_multiplier.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self._source = checkpoint
        self._offset = np.float32(config.norm.endswith("_offset"))
        self._multiplier: np.float32 = np.float32(config.residual_multiplier)
        _, after_attention, _, after_mlp = NORM_PLACEMENTS[config.norm_placement]
        if config.norm_placement == "residual":  # whose norms see more than what a part adds
            after_attention = after_mlp = None
        attention = after_attention or r"(?:self_attn\.o_proj|(?:conv|linear_attn)\.out_proj)"
        last = (attention, after_mlp or r"mlp\.(?:experts\.\d+\.|shared_experts\.)?down_proj")
        self._last_of_residual = re.compile(rf"layers\.\d+\.({'|'.join(last)})\.(weight|bias)$")
        if config.norm.endswith("_plain") and after_attention and self._multiplier != 1:
            raise ExportError(
                f"residual_multiplier is {config.residual_multiplier} behind norms without weights; supported is 1."
            )
        self._order = (
            None
            if config.position != "rope" or config.rotary_dim == (padded := padded_rotary_dim(config))
            else _head_order(config, padded)
        )
        norm = config.norm.removesuffix("_offset")
        encoder = config.encoder and dataclasses.replace(config.encoder, norm=norm)
        self.config = dataclasses.replace(config, norm=norm, residual_multiplier=1.0, encoder=encoder)

    @property
    def hf_config(self) -> Mapping[str, Any]:
        """The source's."""
        return self._source.hf_config

    @property
    def text_files(self) -> Mapping[str, str]:
        """The source's."""
        return self._source.text_files

    @property
    def source(self) -> Mapping[str, Any]:
        """The source's."""
        return self._source.source

    @property
    def notes(self) -> tuple[str, ...]:
        """The source's."""
        return self._source.notes

    @property
    def head_divisors(self) -> NDArray[np.float32] | None:
        """The source's."""
        return self._source.head_divisors

    def stored_type(self, name: str) -> str:
        """Name the type of the source's tensor."""
        return self._source.stored_type(name)

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, with its factors inside."""
        tensor = self._source.tensor(name)
        if self._offset and is_of_norm(name):
            tensor = tensor + self._offset
        if self._is_reordered(name):
            tensor = tensor[self._row_order(len(tensor))]
        return tensor * self._multiplier if self._is_multiplied(name) else tensor

    def quantized_blocks(self, name: str) -> QuantizedBlocks | None:
        """Return a matrix on its own grid, whose scales take the factor."""
        blocks = self._source.quantized_blocks(name)
        if blocks is not None and self._is_multiplied(name):
            blocks = blocks.times(self._multiplier)
        if blocks is not None and self._is_reordered(name):
            blocks = blocks.rows(self._row_order(len(blocks.values)))
        return blocks

    def _is_reordered(self, name: str) -> bool:
        return self._order is not None and _QUERIES_OR_KEYS.search(name) is not None

    def _row_order(self, rows: int) -> NDArray[np.int64]:
        """Repeat the order of one head for every head that a tensor has."""
        assert self._order is not None
        firsts = np.arange(0, rows, len(self._order))
        order: NDArray[np.int64] = (firsts[:, None] + self._order).reshape(-1)
        return order

    def _is_multiplied(self, name: str) -> bool:
        return self._multiplier != 1 and self._last_of_residual.search(name) is not None


class UnfoldedCheckpoint(FoldedCheckpoint):
    """The way back: the tensors of a checkpoint that is folded, without what FoldedCheckpoint puts inside them.

    A norm of 1 + weight comes out to the last bit where the weight is from -0.5 up, and all else within one rounding.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.config = checkpoint.config

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Read one tensor, with its factors taken out."""
        tensor = self._source.tensor(name)
        if self._is_multiplied(name):
            tensor = tensor / self._multiplier
        if self._is_reordered(name):
            tensor = tensor[np.argsort(self._row_order(len(tensor)))]
        return tensor - self._offset if self._offset and is_of_norm(name) else tensor

    def quantized_blocks(self, name: str) -> QuantizedBlocks | None:
        """Return a matrix on its own grid, whose scales lose the factor."""
        blocks = self._source.quantized_blocks(name)
        if blocks is not None and self._is_multiplied(name):
            blocks = blocks.times(np.float32(1) / self._multiplier)
        if blocks is not None and self._is_reordered(name):
            blocks = blocks.rows(np.argsort(self._row_order(len(blocks.values))))
        return blocks


def _head_order(config: ModelConfig, padded: int) -> NDArray[np.int64]:
    """Order a head's dimensions: first half of what turns, filling, second half, filling, the rest.

    The graph turns dimension i with i + padded/2; the filling is what does not turn, by an angle of zero.
    """
    half, filling = config.rotary_dim // 2, (padded - config.rotary_dim) // 2
    rest = np.arange(config.rotary_dim, config.head_dim)
    parts = np.arange(half), rest[:filling], np.arange(half, 2 * half), rest[filling:]
    return np.concatenate(parts)

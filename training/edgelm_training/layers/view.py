"""Views: what each token of a batch of rows sees, and where it stands.

Shapes: B batch, T tokens (each is a query and a key), S tokens of a source, R the part of a head that turns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.architecture import rope
from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError


class Rotation(NamedTuple):
    """cos and sin of each position's angles, and what a query there is multiplied by, if anything."""

    cos: Tensor
    sin: Tensor
    query_factor: Tensor | None


def check_length(what: str, ids_BT: Tensor, config: ModelConfig) -> None:
    """Check that rows of tokens fit a stack.

    Raises:
        ContextLengthError: they do not; `what` they are.
    """
    if ids_BT.shape[1] > config.max_position_embeddings:
        raise ContextLengthError(
            f"The {what} has {ids_BT.shape[1]} tokens; the model's context holds {config.max_position_embeddings}."
        )


class View:
    """What each token of the rows sees, and where it stands: in its row, or in its document where a row has several.

    positions: int64 [T], or [B, T] with documents. lengths: of the text that a token belongs to, a number or [B, T].
    """

    def __init__(self, ids_BT: Tensor, documents_BT: Tensor | None) -> None:
        self.lengths: int | Tensor = ids_BT.shape[1]
        self._places_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        self.positions: Tensor = self._places_T
        self._same_document_BTT: Tensor | None = None
        if documents_BT is not None:
            starts_BT = document_starts(documents_BT)
            self.positions = self._places_T - starts_BT
            self._same_document_BTT = starts_BT[:, :, None] == starts_BT[:, None, :]
            self.lengths = self._same_document_BTT.sum(-1)

    @property
    def distances(self) -> Tensor:
        """How far each key (last dimension) is behind each query, [T, T]."""
        return self._places_T - self._places_T[:, None]

    def mask(self, window: int | None) -> Tensor | None:
        """Return what `sees` returns; None is every key that is not later, which attention computes without a mask,
        and faster.
        """
        window = None if window is None or window >= len(self._places_T) else window
        return None if window is None and self._same_document_BTT is None else self.sees(window)

    def sees(self, window: int | None) -> Tensor | None:
        """Return what a query (second to last dimension) sees of the keys, [T, T] or [B, 1, T, T]."""
        sees_TT = self.distances <= 0
        if window is not None:
            sees_TT = sees_TT & (-self.distances < window)
        return sees_TT if self._same_document_BTT is None else (sees_TT & self._same_document_BTT)[:, None]


class SourceView(View):
    """What each token of a source sees: all of its row that is no padding, or of that what is within a window."""

    def __init__(self, ids_BS: Tensor) -> None:
        super().__init__(ids_BS, None)
        self._kept_BS = ids_BS >= 0

    def mask(self, window: int | None) -> Tensor | None:
        """Return which keys are no padding [B, 1, 1, S], and near a query [S, S] or [B, 1, S, S]; None: all.

        Padding sees itself, since a query that sees nothing has no weights: NaN, which each next layer spreads.
        """
        kept = None if bool(self._kept_BS.all()) else self._kept_BS[:, None, None]
        if window is None:
            return kept
        near_SS = self.distances.abs() < window
        return near_SS if kept is None else near_SS & (kept | (self.distances == 0))

    sees = mask


def document_starts(documents_BT: Tensor) -> Tensor:
    """Return for each token the place [B, T] in its row where its document begins."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = functional.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return torch.where(begins_BT, places_T, 0).cummax(1).values


class Rotary(nn.Module):
    """Give each position's rotation: cos and sin of its angles."""

    query_factor: Tensor | None

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.context = config.max_position_embeddings
        self.short_context = config.short_context if rope.has_long_table(config, kind) else None
        cos, sin = map(torch.from_numpy, rope.cos_sin_tables(config, config.max_position_embeddings, kind))
        self.cos, self.sin = nn.Buffer(cos, persistent=False), nn.Buffer(sin, persistent=False)
        factors = None
        if config.llama_4_scaling_beta is not None:
            factors = torch.from_numpy(rope.query_factors(config, np.arange(config.max_position_embeddings)))
        self.register_buffer("query_factor", factors, persistent=False)

    def forward(self, view: View) -> Rotation:
        """Return cos and sin, each [T, R/2] or [B, T, R/2], and the queries' factor [T] or [B, T]."""
        rows = view.positions
        if self.short_context is not None:
            is_long = torch.as_tensor(view.lengths > self.short_context)
            rows = rows + self.context * is_long.to(rows)
        factors: Tensor | None = self.query_factor
        factor = None if factors is None else factors[view.positions]
        return Rotation(self.cos[rows], self.sin[rows], factor)

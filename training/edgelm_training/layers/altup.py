"""AltUp: several residual streams, of which a layer computes the first and corrects all; and LAuReL beside attention.

Each layer predicts what leaves it, from what enters it. The prediction of the first stream goes through attention and
feed-forward; what it lacked of what they make of it is added to every stream, in shares that depend on the token.
Source: arXiv:2301.13310, arXiv:2411.07501.
Shapes: B batch, T tokens, A streams, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from edgelm.architecture.layer_features import LEAST_POWER
from edgelm.config import ModelConfig
from edgelm_training.layers.attention import make_norm


class AltUp(nn.Module):
    """Predict the streams of one layer, and correct them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        A, D = config.altup_num_inputs, config.hidden_size
        self.correct_output_scale = nn.Parameter(torch.ones(D)) if config.altup_correct_scale else None
        self.router_norm = make_norm(config, D)
        self.modality_router = nn.Linear(D, A, bias=False)
        self.prediction_coefs = nn.Linear(A, A * A, bias=False)
        self.correction_coefs = nn.Linear(A, A, bias=False)

    def predicted(self, streams_BTAD: Tensor) -> Tensor:
        """Return the streams as this layer expects them behind itself, [B, T, A, D]."""
        A = streams_BTAD.shape[2]
        shares_BTAA = self.prediction_coefs(self._routed(streams_BTAD[:, :, 0])).unflatten(-1, (A, A))
        return shares_BTAA @ streams_BTAD + streams_BTAD

    def corrected(self, predicted_BTAD: Tensor, made_BTD: Tensor) -> Tensor:
        """Return the streams [B, T, A, D] with what their first lacks of what the layer made of it."""
        lacking_BTD = made_BTD - predicted_BTAD[:, :, 0]
        shares_BTA = self.correction_coefs(self._routed(made_BTD)) + 1
        return lacking_BTD[:, :, None] * shares_BTA[..., None] + predicted_BTAD

    def gating(self, streams_BTAD: Tensor) -> Tensor:
        """Return what gates the layer's own features of a token, [B, T, D]."""
        first_BTD = streams_BTAD[:, :, 0]
        return first_BTD if self.correct_output_scale is None else first_BTD * self.correct_output_scale

    def added(self, streams_BTAD: Tensor, part_BTD: Tensor) -> Tensor:
        """Add what the features are made of to all streams but the first."""
        first_BTD, *others = streams_BTAD.unbind(2)
        return torch.stack([first_BTD, *(other_BTD + part_BTD for other_BTD in others)], 2)

    def _routed(self, hidden_BTD: Tensor) -> Tensor:
        """Return what of a token decides the shares, [B, T, A]."""
        return torch.tanh(self.modality_router(self.router_norm(hidden_BTD)) / hidden_BTD.shape[-1])


class Laurel(nn.Module):
    """Go beside attention: what it reads, and what two thin matrices make of that."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear_left = nn.Linear(config.hidden_size, config.laurel_rank, bias=False)
        self.linear_right = nn.Linear(config.laurel_rank, config.hidden_size, bias=False)
        self.post_laurel_norm = make_norm(config, config.hidden_size)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return what goes beside attention [B, T, D]."""
        return hidden_BTD + self.post_laurel_norm(self.linear_right(self.linear_left(hidden_BTD)))


def stream_projections(config: ModelConfig) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return the projections that the streams but the first are made by, and those that they are merged by."""
    D, others = config.hidden_size, config.altup_num_inputs - 1
    made, merged_by = (nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(others)) for _ in range(2))
    return made, merged_by


def spread(hidden_BTD: Tensor, projections: Iterable[nn.Module]) -> Tensor:
    """Make the streams [B, T, A, D] of what is embedded: itself, and projections of it of the same power."""
    others = [_of_power(project(hidden_BTD), hidden_BTD) for project in projections]
    return torch.stack([hidden_BTD, *others], 2)


def merged(streams_BTAD: Tensor, projections: Iterable[nn.Module]) -> Tensor:
    """Make one stream [B, T, D] of all: the mean of the first, and projections of the others of the same power."""
    first_BTD, *others = streams_BTAD.unbind(2)
    projected = [_of_power(project(x_BTD), first_BTD) for project, x_BTD in zip(projections, others, strict=True)]
    return torch.stack([first_BTD, *projected]).mean(0)


def _of_power(x_BTD: Tensor, as_of_BTD: Tensor) -> Tensor:
    wanted_BT1 = as_of_BTD.square().mean(-1, keepdim=True).sqrt()
    return x_BTD * (wanted_BT1 / x_BTD.square().mean(-1, keepdim=True).clamp(min=LEAST_POWER).sqrt())

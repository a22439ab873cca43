"""Convolution: what a layer has in the place of attention where it sees a few tokens alone.

Shapes are suffixes, as in model.py; L tokens that one sees, itself the last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.config import ModelConfig


class Convolution(nn.Module):
    """Sum each channel over a token and the L - 1 before it, between two gates that the token itself opens.

    The short convolution of LFM2 (arXiv:2511.23404). Nothing before those tokens is kept, so that a runtime's memory
    does not grow with the text.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, bias = config.hidden_size, config.conv_bias
        self.in_proj = nn.Linear(D, 3 * D, bias=bias)
        self.conv = nn.Conv1d(D, D, config.conv_L_cache or 0, groups=D, bias=bias)
        self.out_proj = nn.Linear(D, D, bias=bias)

    def forward(self, hidden_BTD: Tensor, positions: Tensor) -> Tensor:
        """Return what each position gets [B, T, D]; positions: of the tokens in their texts, [T] or [B, T]."""
        opening_BTD, closing_BTD, value_BTD = self.in_proj(hidden_BTD).chunk(3, -1)
        gated_BTD = opening_BTD * value_BTD
        return self.out_proj(closing_BTD * causal_sums(gated_BTD, self.conv, positions))


def causal_sums(x_BTD: Tensor, conv: nn.Conv1d, positions: Tensor) -> Tensor:
    """Sum each channel over a token and those before it in its text, as many as the convolution has weights."""
    factors_LD = conv.weight[:, 0].flip(-1).T  # the token's own first
    summed_BTD = x_BTD * factors_LD[0]
    for back, factor_D in enumerate(factors_LD[1:], 1):
        earlier_BTD = functional.pad(x_BTD, (0, 0, back, 0))[:, : x_BTD.shape[1]]
        of_same_text = (positions >= back)[..., None]
        summed_BTD = summed_BTD + torch.where(of_same_text, earlier_BTD, 0) * factor_D
    return summed_BTD if conv.bias is None else summed_BTD + conv.bias

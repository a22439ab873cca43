"""Activations of feed-forwards, and what of their gates is nothing. Shapes: any."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.config import XIELU_BETA

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),  # arXiv:2109.08668
}


class XIELU(nn.Module):
    """Grow by the square above zero, and towards a line below (arXiv:2411.13010), by two learned factors."""

    def __init__(self) -> None:
        super().__init__()
        # Softplus makes 0.8 of the first, and with the slope at zero of the second.
        self.alpha_p = nn.Parameter(torch.tensor([0.8]).expm1().log())
        self.alpha_n = nn.Parameter(torch.tensor([0.8 - XIELU_BETA]).expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated `x`."""
        above, below = functional.softplus(self.alpha_p), XIELU_BETA + functional.softplus(self.alpha_n)
        positive, negative = functional.relu(x), -functional.relu(-x)
        return above * positive.square() + below * (torch.expm1(negative) - negative) + XIELU_BETA * x


def thinned(gate: Tensor, cutoff: float) -> Tensor:
    """Return by how much each gate of a row is above their mean and `cutoff` standard deviations, or nothing."""
    mean = gate.mean(-1, keepdim=True)
    deviation = gate.std(-1, keepdim=True, unbiased=False)
    return functional.relu(gate - (mean + cutoff * deviation))

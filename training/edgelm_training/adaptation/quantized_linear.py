"""QuantizedLinear: a frozen linear layer whose weight is kept in 4 bits, on the grid of the exporter's int4.

Source: QLoRA (arXiv:2305.14314), with MatMulNBits' grid in the place of NF4: what is learned on top of this base fits
the base that runs in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgelm.architecture.block_grid import in_blocks, searched_grid
from edgelm.architecture.quantization_scheme import Scheme

BLOCK_SIZE = 64
# What an adapter says of the base that it was trained on; the exporter's name for the same grid.
GRID_NAME = "int4-block64"
_SCHEME = Scheme(bits=4, block_size=BLOCK_SIZE, symmetric=True, method="searched")
# Small enough for a search's temporaries to stay in the cache.
_WEIGHTS_AT_ONCE = 1 << 16


class QuantizedLinear(nn.Module):
    """Compute with a linear layer's weight, rounded to 4 bits in blocks of 64 with a searched scale each.

    Neither the weight nor the bias learns; the gradient passes through to the input. The weight is unpacked for each
    product and dropped after it, in the backward pass too, so that memory holds 4.5 bits a weight.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scales = _values_and_scales(linear.weight.detach().float().cpu().numpy())
        flat = torch.from_numpy(values).flatten(1)
        # Parameters, not buffers: a run saves its buffers, and no parameter that is frozen.
        self.packed = nn.Parameter(flat[:, 0::2] | flat[:, 1::2] << 4, requires_grad=False)
        self.scales = nn.Parameter(torch.from_numpy(scales), requires_grad=False)
        self.bias = linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + bias, [..., out_features]."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def weight(self) -> Tensor:
        """Return the float32 weight [out_features, in_features] that the layer computes with."""
        values = torch.stack((self.packed & 15, self.packed >> 4), dim=-1).flatten(1).to(torch.float32) - 8
        blocks = values.unflatten(1, (-1, BLOCK_SIZE)) * self.scales[..., None]
        return blocks.flatten(1)[:, : self.in_features]


class _Product(torch.autograd.Function):
    """x Wᵀ, keeping nothing for the backward pass but the packed weight, which lives anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return functional.linear(x, layer.weight().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.weight().to(gradient.dtype)).to(ctx.dtype), None


def on_grid(weight: Tensor) -> Tensor:
    """Return the float32 weight that QuantizedLinear computes with in the place of `weight`."""
    values, scales = _values_and_scales(weight.detach().float().cpu().numpy())
    blocks = (values.astype(np.float32) - 8) * scales[..., None]
    return torch.from_numpy(blocks.reshape(len(blocks), -1)[:, : weight.shape[1]].copy())


def pieces_in_blocks(weight_NK: NDArray[np.float32], block_size: int) -> Iterator[NDArray[np.float32]]:
    """Yield the blocks [n, blocks, block_size] of a few rows at a time."""
    rows = max(1, _WEIGHTS_AT_ONCE // weight_NK.shape[1])
    for start in range(0, len(weight_NK), rows):
        yield in_blocks(weight_NK[start : start + rows], block_size)


def _values_and_scales(weight_NK: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return integers 0 to 15 [N, blocks, 64] and scales [N, blocks], as the exporter's int4 finds them."""
    values, scales = [], []
    for blocks in pieces_in_blocks(weight_NK, BLOCK_SIZE):
        grid = searched_grid(blocks, _SCHEME).with_half_scales()
        values.append(grid.nearest(blocks).astype(np.uint8))
        scales.append(grid.scales)
    return np.concatenate(values), np.concatenate(scales)

"""Grid: the scales and zero points of a matrix in blocks, and the ways to choose them.

Shapes: N rows, blocks along the columns, then the block's own weights: [N, blocks, block_size].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgelm_export.quantize.packed import PackedWeight, in_blocks, pack
from edgelm_export.quantize.scheme import Scheme

Array = NDArray[np.float32]

# Trial sizes of a block's grid, as shares of the one that just holds its outermost weights.
_SYMMETRIC_SHARES = (0.80, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08)
_ASYMMETRIC_SHARES = (0.70, 0.76, 0.82, 0.88, 0.92, 0.96, 1.0)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """weight = scale * (value - zero) for each block; values and zeros are integers from 0 to `top`, held as floats."""

    top: int
    scales: Array  # [N, blocks]
    zeros: Array  # [N, blocks]

    def nearest(self, blocks: Array) -> Array:
        """Return the values [N, blocks, block_size] that are nearest to the weights."""
        return np.asarray(
            np.clip(np.rint(blocks / self.scales[..., None]) + self.zeros[..., None], 0, self.top), np.float32
        )

    def weights(self, values: Array) -> Array:
        """Return the weights that values stand for."""
        return (values - self.zeros[..., None]) * self.scales[..., None]

    def pack(self, values: Array, scheme: Scheme, columns: int) -> PackedWeight:
        """Return values on this grid in the operator's layout."""
        zeros = None if scheme.symmetric else self.zeros.astype(np.uint8)
        return pack(values.astype(np.uint8), self.scales, zeros, bits=scheme.bits, columns=columns)


def outermost_grid(blocks: Array, scheme: Scheme) -> Grid:
    """Return the grid that just holds each block's outermost weights: that of rounding to nearest.

    Symmetric 8 bits span -127..127; fewer bits span the whole range, with the largest weight at its longer end: a
    sixteenth of the steps matters there.
    """
    top, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    if not scheme.symmetric:
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scales = _nonzero((high - low) / np.float32(top))
        return Grid(top=top, scales=scales, zeros=np.clip(np.rint(-low / scales), 0, top))
    if scheme.bits == 8:
        scales = _nonzero(np.abs(blocks).max(-1) / np.float32(middle - 1))
    else:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
        scales = _nonzero(largest / np.float32(-middle))
    return Grid(top=top, scales=scales, zeros=np.full_like(scales, middle))


def searched_grid(blocks: Array, scheme: Scheme, importance: Array | None = None) -> Grid:
    """Search each block's grid for the least squared error, weighted by `importance` (that of `|weight|` if None).

    Weighting by |weight| keeps the search from clipping the few large weights, which matter most: without it the error
    falls and the perplexity rises (docs/results/quantization.md). It costs seconds at export, nothing at run time.
    """
    importance = np.abs(blocks) if importance is None else importance
    start = outermost_grid(blocks, scheme)
    best_error = np.full(start.scales.shape, np.inf, np.float32)
    scales, zeros = start.scales.copy(), start.zeros.copy()
    for share in _SYMMETRIC_SHARES if scheme.symmetric else _ASYMMETRIC_SHARES:
        trial = Grid(top=start.top, scales=start.scales * np.float32(share), zeros=start.zeros)
        steps = trial.nearest(blocks) - trial.zeros[..., None]
        # For these integers, the scale of least weighted error.
        norm = (importance * steps * steps).sum(-1)
        fitted = np.divide((importance * steps * blocks).sum(-1), norm, out=start.scales.copy(), where=norm > 0)
        error = (importance * np.square(steps * fitted[..., None] - blocks)).sum(-1)
        better = error < best_error
        best_error[better], scales[better], zeros[better] = error[better], fitted[better], trial.zeros[better]
    return Grid(top=start.top, scales=_nonzero(scales), zeros=zeros)


# The norm of HQQ's error, and how its half-quadratic solver tightens, from the authors' description.
_HQQ_NORM, _HQQ_BETA, _HQQ_GROWTH, _HQQ_ROUNDS = np.float32(0.7), np.float32(10.0), np.float32(1.05), 20


def hqq_grid(blocks: Array, scheme: Scheme) -> Grid:
    """Search the grid that leaves a sparse error: a few large misses, which no block can avoid, do not pull at it.

    Half-quadratic quantization (Badri and Shaji, 2023): split the error into what the l0.7 norm lets stand and the
    rest, fit the grid to the rest, and again. The authors fit floating zero points; those are 31 times slower here, so
    that the scale is fitted, and the zero point moves by whole steps.
    """
    grid = best = outermost_grid(blocks, scheme)
    best_error, beta = _robust_error(blocks, grid), _HQQ_BETA
    for _ in range(_HQQ_ROUNDS):
        values = grid.nearest(blocks)
        missed = blocks - grid.weights(values)
        # In steps of the grid, so that one beta fits blocks of every size.
        size = np.abs(missed / grid.scales[..., None])
        kept = np.maximum(size - np.power(size + np.float32(1e-8), _HQQ_NORM - 1) / beta, 0) / np.maximum(size, 1e-8)
        wanted = blocks - missed * kept
        zeros = grid.zeros
        if not scheme.symmetric:
            zeros = np.clip(np.rint((values - wanted / grid.scales[..., None]).mean(-1)), 0, grid.top)
        steps = values - zeros[..., None]
        norm = np.square(steps).sum(-1)
        scales = np.divide((steps * wanted).sum(-1), norm, out=grid.scales.copy(), where=norm > 0)
        grid = Grid(top=grid.top, scales=_nonzero(scales), zeros=zeros)
        error = _robust_error(blocks, grid)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = Grid(
            top=grid.top,
            scales=np.where(better, grid.scales, best.scales),
            zeros=np.where(better, grid.zeros, best.zeros),
        )
        beta = beta * _HQQ_GROWTH
    return best


def _robust_error(blocks: Array, grid: Grid) -> Array:
    return np.asarray(np.power(np.abs(blocks - grid.weights(grid.nearest(blocks))), _HQQ_NORM).sum(-1))


def _nonzero(scales: Array) -> Array:
    """Give an empty block any scale: all its values are the zero point."""
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)


# One row a method that needs the weight alone; gptq is another kind (gptq.py).
GRIDS: dict[str, Callable[[Array, Scheme], Grid]] = {
    "rounded": outermost_grid,
    "searched": searched_grid,
    "hqq": hqq_grid,
}


# Small enough for a search's temporaries to stay in the cache: with large ones, most of the time goes into new pages.
_WEIGHTS_AT_ONCE = 1 << 16


def quantize_alone(weight_NK: Array, scheme: Scheme) -> PackedWeight:
    """Quantize a matrix by a method that needs nothing else."""
    rows = max(1, _WEIGHTS_AT_ONCE // weight_NK.shape[1])
    values, scales, zeros = [], [], []
    for start in range(0, len(weight_NK), rows):
        blocks = in_blocks(weight_NK[start : start + rows], scheme.block_size)
        grid = GRIDS[scheme.method](blocks, scheme)
        values.append(grid.nearest(blocks).astype(np.uint8))
        scales.append(grid.scales)
        zeros.append(grid.zeros)
    return pack(
        np.concatenate(values),
        np.concatenate(scales),
        None if scheme.symmetric else np.concatenate(zeros).astype(np.uint8),
        bits=scheme.bits,
        columns=weight_NK.shape[1],
    )

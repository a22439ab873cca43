"""The grid of MatMulNBits: a matrix in blocks of small integers, each block with a scale and a zero point.

The exporter puts weights on it, and training computes with weights that lie on it: this is the one definition of both.

Shapes: N rows, K columns; blocks along the columns, then the block's own weights: [N, blocks, block_size].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_scheme import Scheme

Array = NDArray[np.float32]

# Trial sizes of a block's grid, as shares of the one that just holds its outermost weights.
_SYMMETRIC_SHARES = (0.80, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08)
_ASYMMETRIC_SHARES = (0.70, 0.76, 0.82, 0.88, 0.92, 0.96, 1.0)
# 5 and 6 bits are computed with as 8: between two of their integers a zero point has these places.
_ZERO_PLACES = {5: 8, 6: 4}
# How far from a level a weight lies that was written as one, in float32 or rounded to float16 once more.
_OF_A_LEVEL = np.float32(0.02)
_FEW = 4


@dataclass(frozen=True, kw_only=True)
class Grid:
    """weight = scale * (value - zero) for each block.

    values are integers from 0 to `top`, held as floats; zeros are, too, or lie between two at one of `zero_places`.
    """

    top: int
    scales: Array  # [N, blocks]
    zeros: Array  # [N, blocks]

    def nearest(self, blocks: Array) -> Array:
        """Return the values [N, blocks, block_size] that are nearest to the weights."""
        # Apart, since float32 holds a small step more closely than the same step above a zero point of 128.
        whole = np.floor(self.zeros)
        steps = blocks / self.scales[..., None]
        if (whole != self.zeros).any():
            steps += (self.zeros - whole)[..., None]
        np.rint(steps, out=steps)
        steps += whole[..., None]
        return np.asarray(np.clip(steps, 0, self.top, out=steps), np.float32)

    def weights(self, values: Array) -> Array:
        """Return the weights that values stand for."""
        return (values - self.zeros[..., None]) * self.scales[..., None]

    def with_half_scales(self) -> Grid:
        """Return the grid with the scales that a package stores."""
        return replace(self, scales=half_scales(self.scales))


def half_scales(scales: Array) -> Array:
    """Round scales to float16, in which a package stores them where it holds them all.

    That moves a weight by at most 2^-11 of it, an eighth of a step of 8 bits. Scales beyond float16's normal range stay
    as they are.
    """
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    normal = (np.abs(halves) >= np.finfo(np.float16).smallest_normal) & np.isfinite(halves)
    return np.where(normal, halves, scales)


def zero_places(bits: int) -> int:
    """Return how many places a zero point has for each step of a grid of so many bits."""
    return _ZERO_PLACES.get(bits, 1)


def in_blocks(weight_NK: Array, block_size: int) -> Array:
    """Cut the columns into blocks [N, blocks, block_size], padded with zeros."""
    N, K = weight_NK.shape
    blocks = -(-K // block_size)
    padded = np.pad(weight_NK, ((0, 0), (0, blocks * block_size - K))) if K % block_size else weight_NK
    return padded.reshape(N, blocks, block_size)


def outermost_grid(blocks: Array, scheme: Scheme) -> Grid:
    """Return the grid that just holds each block's outermost weights: that of rounding to nearest.

    Symmetric 8 bits span -127..127; fewer bits span the whole range, with the largest weight at its longer end: a
    sixteenth of the steps matters there.
    """
    top, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    if not scheme.symmetric:
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scales = nonzero_scales(np.divide(high - low, top, dtype=np.float32))
        places = np.float32(zero_places(scheme.bits))
        return Grid(top=top, scales=scales, zeros=np.clip(np.rint(-low / scales * places) / places, 0, top))
    if scheme.bits == 8:
        scales = nonzero_scales(np.divide(np.abs(blocks).max(-1), middle - 1, dtype=np.float32))
    else:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
        scales = nonzero_scales(largest / np.float32(-middle))
    return Grid(top=top, scales=scales, zeros=np.full_like(scales, middle))


def searched_grid(blocks: Array, scheme: Scheme, importance: Array | None = None) -> Grid:
    """Search each block's grid for the least squared error, weighted by `importance` (that of `|weight|` if None).

    Weighting by |weight| keeps the search from clipping the few large weights, which matter most: without it the error
    falls and the perplexity rises (docs/results/quantization.md). It costs seconds at export, nothing at run time.
    """
    importance = np.abs(blocks) if importance is None else importance
    start, important = outermost_grid(blocks, scheme), importance * blocks
    most = np.full(start.scales.shape, -1, np.float32)
    scales = start.scales.copy()
    middle, zeros = 1 << (scheme.bits - 1), start.zeros[..., None]
    steps, weighted = np.empty_like(important), np.empty_like(important)
    for share in _SYMMETRIC_SHARES if scheme.symmetric else _ASYMMETRIC_SHARES:
        np.divide(blocks, (start.scales * np.float32(share))[..., None], out=steps)
        if scheme.symmetric:
            np.clip(np.rint(steps, out=steps), -middle, start.top - middle, out=steps)
        else:
            steps += zeros
            np.clip(np.rint(steps, out=steps), 0, start.top, out=steps)
            steps -= zeros
        np.multiply(importance, steps, out=weighted)
        norm = np.einsum("nbk,nbk->nb", weighted, steps)
        along = np.einsum("nbk,nbk->nb", important, steps)
        # For these integers, the scale of least weighted error; it takes along**2 / norm away from that of all zeros.
        fitted = np.divide(along, norm, out=start.scales.copy(), where=norm > 0)
        explained = np.where(norm > 0, along * fitted, 0)
        better = explained > most
        most[better], scales[better] = explained[better], fitted[better]
    # Products of weights below 1e-22 are zero in float32, and so is the scale that they tell: rounding's holds them.
    return Grid(top=start.top, scales=np.where(scales == 0, start.scales, scales), zeros=start.zeros)


def exact_grid(blocks: Array, scheme: Scheme) -> tuple[Grid, NDArray[np.bool_]]:
    """Find the grid that a block's weights lie on; return the grids, and which blocks [N, blocks] have one.

    Weights that are integers times one scale, as quantized files and quantization-aware training leave them, are held
    without any error by that grid, where a search would find one beside it. Of several, the coarsest is taken, and the
    one with a positive scale where both signs hold the block. The smallest weight is a few steps large: all numbers of
    steps that it can be are tried.
    """
    top, middle = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    most = middle if scheme.symmetric else top
    flat = blocks.reshape(-1, blocks.shape[-1])
    sizes = np.abs(flat)
    # argmax takes half the time of max. The bits of a size order as it does; zero less one is the largest of them.
    largest = np.take_along_axis(sizes, sizes.argmax(-1)[:, None], -1)[:, 0]
    bits = sizes.view(np.uint32)
    bits -= np.uint32(1)
    smallest = (bits.min(-1) + np.uint32(1)).view(np.float32)
    found = largest == 0
    scales = np.ones(len(flat), np.float32)
    zeros = np.full(len(flat), middle if scheme.symmetric else 0, np.float32)
    for steps in range(1, most + 1):
        left = np.flatnonzero(~found & (largest <= smallest * np.float32((most + 0.5) / steps)))
        if not left.size:
            break
        trial = (smallest[left] / np.float32(steps)).astype(np.float32)
        # A few weights tell of nearly all blocks that they do not fit.
        few = flat[left, :_FEW]
        near = (np.rint(few / trial[:, None]) * trial[:, None] == few).all(-1)
        left, trial = left[near], trial[near]
        values = np.rint(flat[left] / trial[:, None])
        low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
        signs = np.ones(len(left), np.float32)
        if scheme.symmetric:
            fits = (np.maximum(-low, high) <= middle) & (np.minimum(-low, high) < middle)
            signs = np.where(high < middle, np.float32(1), np.float32(-1))
        else:
            fits = high - low <= top
            zeros[left] = -low
        fits &= (values * trial[:, None] == flat[left]).all(-1)
        scales[left] = trial * signs
        found[left[fits]] = True
    shape = blocks.shape[:-1]
    return Grid(top=top, scales=scales.reshape(shape), zeros=zeros.reshape(shape)), found.reshape(shape)


def levels_grid(blocks: Array, scheme: Scheme) -> tuple[Grid, NDArray[np.bool_]]:
    """Find the even levels that a block's weights lie on, wherever they begin; return as `exact_grid` does.

    It is for schemes whose zero points have places between the steps. So files of 4 bits leave weights that store a
    float for each block's least (Q4_1, Q4_K): such zero points hold them to a thirty-second of a level, where the
    nearest of 32 other levels would be an eighth away on average. The grid's step is the level's, halved as often as
    the integers have room for.
    """
    top, places = (1 << scheme.bits) - 1, np.float32(zero_places(scheme.bits))
    flat = blocks.reshape(-1, blocks.shape[-1])
    lowest, highest = flat.min(-1), flat.max(-1)
    scales, zeros = np.ones(len(flat), np.float32), np.zeros(len(flat), np.float32)
    found = np.zeros(len(flat), bool)
    between = (lowest <= 0) & (highest > 0)
    for levels in range(1, top + 1):
        left = np.flatnonzero(between & ~found)
        if not left.size:
            break
        level = (highest - lowest) / np.float32(levels)
        # A few weights tell of nearly all blocks that they do not fit.
        fitting = left
        for columns in (slice(_FEW), slice(None)):
            values = (flat[fitting, columns] - lowest[fitting, None]) / level[fitting, None]
            fitting = fitting[(np.abs(values - np.rint(values)) < _OF_A_LEVEL).all(-1)]
        scales[fitting] = level[fitting] / np.float32(1 << (top // levels).bit_length() - 1)
        zeros[fitting] = np.rint(-lowest[fitting] / scales[fitting] * places) / places
        found[fitting] = True
    shape = blocks.shape[:-1]
    grid = Grid(top=top, scales=scales.reshape(shape), zeros=zeros.reshape(shape))
    return grid.with_half_scales(), found.reshape(shape)


def nonzero_scales(scales: Array) -> Array:
    """Give an empty block any scale: all its values are the zero point."""
    return np.where(scales == 0, np.float32(1), scales).astype(np.float32)

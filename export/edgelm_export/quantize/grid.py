"""The ways to put a matrix on MatMulNBits' grid (edgelm/architecture/block_grid.py) that need the matrix alone.

Shapes: N rows, blocks along the columns, then the block's own weights: [N, blocks, block_size].
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.block_grid import (
    Array,
    Grid,
    exact_grid,
    in_blocks,
    levels_grid,
    nonzero_scales,
    outermost_grid,
    searched_grid,
    zero_places,
)
from edgelm.architecture.quantization_scheme import SHORTLIST, Scheme
from edgelm.runtime.cpu import usable_cores
from edgelm_export.quantize.packed import PackedWeight, pack, stack

# The norm of HQQ's error, and how its half-quadratic solver tightens, from the authors' description.
_HQQ_NORM, _HQQ_BETA, _HQQ_GROWTH, _HQQ_ROUNDS = np.float32(0.7), np.float32(10.0), np.float32(1.05), 20


def hqq_grid(blocks: Array, scheme: Scheme) -> Grid:
    """Search the grid that leaves a sparse error: a few large misses, which no block can avoid, do not pull at it.

    Half-quadratic quantization (Badri and Shaji, 2023): split the error into what the l0.7 norm lets stand and the
    rest, fit the grid to the rest, and again. The authors fit floating zero points; those are 31 times slower here, so
    that the scale is fitted, and the zero point moves by whole steps.
    """
    grid = best = outermost_grid(blocks, scheme)
    places = np.float32(zero_places(scheme.bits))
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
            fitted = (values - wanted / grid.scales[..., None]).mean(-1)
            zeros = np.clip(np.rint(fitted * places) / places, 0, grid.top)
        steps = values - zeros[..., None]
        norm = np.square(steps).sum(-1)
        scales = np.divide((steps * wanted).sum(-1), norm, out=grid.scales.copy(), where=norm > 0)
        grid = Grid(top=grid.top, scales=nonzero_scales(scales), zeros=zeros)
        error = _robust_error(blocks, grid)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = _where(better, grid, best)
        beta = beta * _HQQ_GROWTH
    return best


def _robust_error(blocks: Array, grid: Grid) -> Array:
    return np.asarray(np.power(np.abs(blocks - grid.weights(grid.nearest(blocks))), _HQQ_NORM).sum(-1))


def _without_a_text(blocks: Array, scheme: Scheme) -> Grid:
    return (outermost_grid if scheme.bits == 8 else searched_grid)(blocks, scheme)


# One row a method.
GRIDS: dict[str, Callable[[Array, Scheme], Grid]] = {
    "rounded": outermost_grid,
    "searched": searched_grid,
    "hqq": hqq_grid,
    "gptq": _without_a_text,  # of what no text has run through (gptq.py)
    SHORTLIST: outermost_grid,  # of what no shortlist is made for
}


def grid_for(blocks: Array, scheme: Scheme) -> Grid:
    """Return the grid that a block lies on already, else the one that the scheme's method finds."""
    own, found = own_grid(blocks, scheme)
    if found.all():
        return own
    return _where(found, own, GRIDS[scheme.method](blocks, scheme).with_half_scales())


def own_grid(blocks: Array, scheme: Scheme) -> tuple[Grid, NDArray[np.bool_]]:
    """Find the grid that a block's weights lie on already, exactly or nearly; return the grids, and who has one."""
    exact, found = exact_grid(blocks, scheme)
    if found.all() or scheme.symmetric or zero_places(scheme.bits) == 1:  # where no zero point lies between two steps
        return exact, found
    levels, on_levels = levels_grid(blocks, scheme)
    return _where(found, exact, levels), found | on_levels


def _where(which: NDArray[np.bool_], first: Grid, second: Grid) -> Grid:
    """Return one grid for the blocks [N, blocks] that are marked, and another for the rest."""
    scales, zeros = np.where(which, first.scales, second.scales), np.where(which, first.zeros, second.zeros)
    return Grid(top=first.top, scales=scales, zeros=zeros)


def pack_on(grid: Grid, values: Array, scheme: Scheme, columns: int) -> PackedWeight:
    """Return values on a grid in the operator's layout."""
    zeros = None if scheme.symmetric else (grid.zeros * np.float32(zero_places(scheme.bits))).astype(np.uint8)
    return pack(values.astype(np.uint8), grid.scales, zeros, bits=scheme.bits, columns=columns)


# Small enough for a search's temporaries to stay in the cache, large enough for threads to compute side by side.
_WEIGHTS_AT_ONCE = 1 << 18


def quantize_alone(weight_NK: Array, scheme: Scheme) -> PackedWeight:
    """Quantize a matrix by a method that needs nothing else, some rows in each thread."""
    N, K = weight_NK.shape
    rows = max(1, _WEIGHTS_AT_ONCE // K)

    def quantized(start: int) -> PackedWeight:
        blocks = in_blocks(weight_NK[start : start + rows], scheme.block_size)
        grid = grid_for(blocks, scheme)
        return pack_on(grid, grid.nearest(blocks), scheme, K)

    if rows >= N:  # sooner done than threads are started, of which there are as many as the system is asked for
        return quantized(0)
    with ThreadPoolExecutor(usable_cores()) as threads:  # numpy computes without the interpreter
        return stack([*threads.map(quantized, range(0, N, rows))])

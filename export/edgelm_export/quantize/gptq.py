"""GPTQ: quantize a matrix column by column, each column's error made up for by those that come later.

Source: Frantar et al., arXiv:2210.17323, with its order of columns by importance on a grid that is fixed beforehand.
Two steps follow that cost a fraction of it: scales fitted to the integers that were found, and integers chosen again
one column at a time for those scales (coordinate descent, as in QuantEase, arXiv:2309.01885).

Shapes: N rows, K columns. The error of all is ||(weight - quantized) X||^2, where X X^T is the hessian [K, K].
"""

from __future__ import annotations

import numpy as np

from edgelm.architecture.block_grid import Grid, in_blocks, outermost_grid, searched_grid
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.quantize.grid import own_grid, pack_on
from edgelm_export.quantize.packed import PackedWeight
from edgelm_export.quantize.statistics import InputStatistics
from edgelm_export.reference.weights import Array

# Of the mean diagonal. The authors take a hundredth; with a text as short as the bundled one a tenth leaves a seventh
# less error on another text (docs/results/quantization.md).
_DAMPING = 0.1
# Columns whose corrections are gathered before they reach the rest of the matrix in one product.
_COLUMNS_AT_ONCE = 64
_DESCENTS = 2
# Of the mean diagonal, in the regression that makes up for the error of the inputs.
_RIDGE = 0.1


def quantize_gptq(weight_NK: Array, inputs: InputStatistics, scheme: Scheme, descents: int = _DESCENTS) -> PackedWeight:
    """Quantize a matrix for its inputs; one that lies on the scheme's grid already is left there.

    descents: how often scales are fitted and integers chosen again, each of which takes as long as the first choice.
    """
    K = weight_NK.shape[1]
    own, found = own_grid(in_blocks(weight_NK, scheme.block_size), scheme)
    if found.all():
        return pack_on(own, own.nearest(in_blocks(weight_NK, scheme.block_size)), scheme, K)
    padding = -K % scheme.block_size
    hessian = _damped(np.pad(inputs.hessian_KK, (0, padding)))
    blocks = in_blocks(_leaning(weight_NK, inputs), scheme.block_size)
    weight = blocks.reshape(len(blocks), -1)
    if scheme.bits == 8:
        grid = outermost_grid(blocks, scheme)
    else:
        # Large weights and those that meet large inputs matter most.
        sizes = np.sqrt(np.diag(hessian)).reshape(1, -1, scheme.block_size)
        grid = searched_grid(blocks, scheme, np.abs(blocks) * sizes)
    grid = grid.with_half_scales()
    values = _compensated(weight, hessian, grid, scheme.block_size)
    for _ in range(descents):
        grid = _fitted(weight, hessian, values, grid, scheme.block_size).with_half_scales()
        values = _descended(weight, hessian, values, grid, scheme.block_size)
    return pack_on(grid, values.reshape(blocks.shape), scheme, K)


def output_error(missed_NK: Array, hessian_KK: Array) -> float:
    """Return the squared error of the outputs for an error of the weights."""
    return float(((missed_NK @ hessian_KK) * missed_NK).sum(dtype=np.float64))


def _leaning(weight_NK: Array, inputs: InputStatistics) -> Array:
    """Return the weight whose outputs for the inputs that come are nearest to the source's outputs for its own.

    Ridge regression: with the inputs S of the source and X of the package, W + W (S - X)^T X (X^T X + r)^-1. Outputs
    that are added to the residual stream make up for what that lacks of the source's as well. The ridge keeps it from
    fitting the text instead of the model.
    """
    ridge = inputs.hessian_KK.astype(np.float64)
    size = float(np.trace(ridge)) / len(ridge)
    if size == 0:
        return weight_NK
    np.fill_diagonal(ridge, np.diag(ridge) + _RIDGE * size)
    missing = weight_NK @ (inputs.cross_KK - inputs.hessian_KK)
    if inputs.lacking_NK is not None:
        missing = missing + inputs.lacking_NK
    return np.asarray(weight_NK + np.linalg.solve(ridge, missing.T.astype(np.float64)).T, np.float32)


def _damped(hessian_KK: Array) -> Array:
    """Scale to a mean diagonal of one, and keep columns that never saw an input from being divided by zero."""
    diagonal = np.diag(hessian_KK).astype(np.float64)
    scale = diagonal.mean() or 1.0
    damped = (hessian_KK / scale).astype(np.float32)
    np.fill_diagonal(damped, diagonal / scale + _DAMPING)
    return damped


def _compensated(weight_NK: Array, hessian_KK: Array, grid: Grid, block_size: int) -> Array:
    """Return GPTQ's values [N, K]."""
    order = np.argsort(-np.diag(hessian_KK), kind="stable")
    permuted = hessian_KK[np.ix_(order, order)].astype(np.float64)
    upper = np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(permuted)).T, np.float32)
    remaining = np.ascontiguousarray(weight_NK.T[order])  # [K, N]: a column of the weight is a row here
    scales, zeros = grid.scales.T[order // block_size], grid.zeros.T[order // block_size]
    values = np.empty_like(remaining)
    K = len(remaining)
    for start in range(0, K, _COLUMNS_AT_ONCE):
        end = min(start + _COLUMNS_AT_ONCE, K)
        errors = np.empty((end - start, remaining.shape[1]), np.float32)
        for k in range(start, end):
            values[k] = np.clip(np.rint(remaining[k] / scales[k] + zeros[k]), 0, grid.top)
            errors[k - start] = (remaining[k] - (values[k] - zeros[k]) * scales[k]) / upper[k, k]
            remaining[k + 1 : end] -= np.outer(upper[k, k + 1 : end], errors[k - start])
        remaining[end:] -= upper[start:end, end:].T @ errors
    unordered = np.empty_like(values)
    unordered[order] = values
    return np.ascontiguousarray(unordered.T)


def _fitted(weight_NK: Array, hessian_KK: Array, values_NK: Array, grid: Grid, block_size: int) -> Grid:
    """Return the grid with each row's scales solved for, all blocks of the row at once."""
    N, K = weight_NK.shape
    blocks = K // block_size
    steps = values_NK.reshape(N, blocks, block_size) - grid.zeros[..., None]
    flat = steps.reshape(N, K)
    products = np.empty((N, blocks, blocks), np.float64)
    for block in range(blocks):
        rows = hessian_KK[block * block_size : (block + 1) * block_size]
        products[:, block] = ((steps[:, block] @ rows) * flat).reshape(N, blocks, block_size).sum(-1)
    wanted = ((weight_NK @ hessian_KK) * flat).reshape(N, blocks, block_size).sum(-1).astype(np.float64)
    # A block of zeros alone has no scale, and 0 comes out for it: any will do, and the one it has stays.
    diagonal = np.arange(blocks)
    empty = products[:, diagonal, diagonal] <= 0
    products[:, diagonal, diagonal] *= 1 + 1e-6
    products[:, diagonal, diagonal] += empty
    scales = np.linalg.solve(products, wanted[..., None])[..., 0].astype(np.float32)
    return Grid(top=grid.top, scales=np.where(scales == 0, grid.scales, scales), zeros=grid.zeros)


def _descended(weight_NK: Array, hessian_KK: Array, values_NK: Array, grid: Grid, block_size: int) -> Array:
    """Choose each column's values again, the best for all the others as they are; the error never rises."""
    K = weight_NK.shape[1]
    of_column = np.arange(K) // block_size
    scales, zeros = grid.scales.T[of_column], grid.zeros.T[of_column]
    values = np.ascontiguousarray(values_NK.T)
    pull = hessian_KK @ (weight_NK.T - (values - zeros) * scales)  # minus half the error's slope
    for start in range(0, K, _COLUMNS_AT_ONCE):
        end = min(start + _COLUMNS_AT_ONCE, K)
        moved = np.empty((end - start, values.shape[1]), np.float32)
        for k in range(start, end):
            wanted = (values[k] - zeros[k]) + pull[k] / (hessian_KK[k, k] * scales[k])
            chosen = np.clip(np.rint(wanted + zeros[k]), 0, grid.top)
            moved[k - start] = (values[k] - chosen) * scales[k]
            values[k] = chosen
            pull[k + 1 : end] += np.outer(hessian_KK[k, k + 1 : end], moved[k - start])
        pull[end:] += hessian_KK[start:end, end:].T @ moved
    return np.ascontiguousarray(values.T)

"""keep: the grid that the source already has, repacked without rounding again."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.block_grid import zero_places
from edgelm.architecture.planes import LOWER_BITS
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.checkpoints.checkpoint import ALL_ROWS, Checkpoint, QuantizedBlocks
from edgelm_export.checkpoints.tensor_map import EXPERTS, GATHERED, PER_LAYER_EMBEDDING
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.offsets import FALLBACK, in_8_bits
from edgelm_export.quantize.packed import PackedWeight, pack, unpack, unpack_values
from edgelm_export.quantize.portions import by_rows, in_portions

FLOAT_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


def keep_grid(checkpoint: Checkpoint, name: str) -> PackedWeight | NDArray[np.floating]:
    """Repack a tensor on its own grid where MatMulNBits holds it at speed; floats keep their type.

    Other types go to 8 bits, and the package says so. An embedding, whose rows are gathered from a symmetric grid, does
    so too where its grid is another. Experts have no place for offsets: theirs lie at sixteenths of a step, in 8 bits.
    """
    blocks = _grid_of(checkpoint, name)
    if blocks is not None and _has_place(blocks, name):
        shape = checkpoint.config.tensor_shapes()[name]
        if name == PER_LAYER_EMBEDDING:
            return by_rows(shape, lambda rows: _rows_on_their_grid(checkpoint, name, rows))
        packed = on_its_grid(blocks, shape[1])
        return in_8_bits(packed) if EXPERTS in name else packed
    dtype = FLOAT_TYPES.get(checkpoint.stored_type(name))
    if dtype is None:
        return in_portions(checkpoint, name, lambda rows: quantize_alone(rows, FALLBACK))
    if name == PER_LAYER_EMBEDDING:  # into which nothing is folded
        return in_portions(checkpoint, name, lambda rows: rows.astype(dtype, copy=False))
    weight = checkpoint.tensor(name)
    stored = weight.astype(dtype, copy=False)
    return stored if np.array_equal(stored, weight) else weight  # a factor that the exporter folds in takes more digits


def _rows_on_their_grid(checkpoint: Checkpoint, name: str, rows: slice) -> PackedWeight:
    blocks = checkpoint.quantized_blocks(name, rows)
    assert blocks is not None  # as the first row is on one
    return on_its_grid(blocks, checkpoint.config.tensor_shapes()[name][1])


def on_its_grid(blocks: QuantizedBlocks, columns: int) -> PackedWeight:
    """Put signed values and zero points into the operator's layout, without rounding.

    MatMulNBits takes 31 times as long with zero points between whole ones (docs/results/graph-and-settings.md). So what
    is left of a block's least weight beside a whole one, half a step or less, is rounded (in 4 bits to a fifteenth of
    the largest of as many blocks as a block has weights), and computed with as a weight of the block's sum.
    """
    middle = 1 << (blocks.bits - 1)
    zeros = None if blocks.zero_points is None else _from_zero(blocks.zero_points, middle * zero_places(blocks.bits))
    weight = pack(_from_zero(blocks.values, middle), blocks.scales, zeros, bits=blocks.bits, columns=columns)
    if blocks.offsets is None:
        return weight
    scheme = Scheme(bits=blocks.bits, block_size=blocks.block_size, symmetric=zeros is None, method="rounded")
    return dataclasses.replace(weight, offsets=quantize_alone(blocks.offsets, scheme))


def as_blocks(weight: PackedWeight) -> QuantizedBlocks:
    """Return a packed weight as signed values on its grid: the way back from `on_its_grid`."""
    values, zero_points = unpack_values(weight)
    return QuantizedBlocks(
        bits=weight.bits,
        block_size=weight.block_size,
        values=values,
        scales=weight.scales,
        zero_points=zero_points,
        offsets=None if weight.offsets is None else unpack(weight.offsets),
    )


def _grid_of(checkpoint: Checkpoint, name: str) -> QuantizedBlocks | None:
    """Return a tensor on its own grid; of a table of layers' features, which is too much memory, the first row."""
    return checkpoint.quantized_blocks(name, slice(1) if name == PER_LAYER_EMBEDDING else ALL_ROWS)


def _has_place(blocks: QuantizedBlocks, name: str) -> bool:
    return name not in GATHERED or (blocks.zero_points is None and blocks.offsets is None)


def _from_zero(values: NDArray[np.int8], middle: int) -> NDArray[np.uint8]:
    return (values.astype(np.int16) + middle).astype(np.uint8)


def types_of_4_bits(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name the stored types that `keep_grid` holds in 4 bits."""
    return tuple(kind for kind, blocks in _kinds(checkpoint) if blocks is not None and blocks.bits == 4)


def weights_of_4_bits(checkpoint: Checkpoint) -> int:
    """Count the weights that `keep_grid` holds in 4 bits."""
    grids = {kind: blocks for kind, blocks in _kinds(checkpoint) if blocks is not None and blocks.bits == 4}
    count = 0
    for name, shape in checkpoint.config.tensor_shapes().items():
        blocks = grids.get(checkpoint.stored_type(name)) if len(shape) == 2 else None
        if blocks is not None and _has_place(blocks, name) and (EXPERTS not in name or blocks.offsets is None):
            count += math.prod(shape)
    return count


def _kinds(checkpoint: Checkpoint) -> list[tuple[str, QuantizedBlocks | None]]:
    """List the stored types, each with the grid of one small tensor of it."""
    smallest: dict[str, str] = {}
    shapes = checkpoint.config.tensor_shapes()
    for name in sorted((name for name in shapes if len(shapes[name]) == 2), key=lambda name: np.prod(shapes[name])):
        smallest.setdefault(checkpoint.stored_type(name), name)
    return [(kind, _grid_of(checkpoint, name)) for kind, name in sorted(smallest.items())]


def stored_types(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """Name the stored types of matrices: those that are floats, and the others, which are on a grid."""
    shapes = checkpoint.config.tensor_shapes()
    kinds = sorted({checkpoint.stored_type(name) for name, shape in shapes.items() if len(shape) == 2})
    return [kind for kind in kinds if kind in FLOAT_TYPES], [kind for kind in kinds if kind not in FLOAT_TYPES]


def moved_types(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name the stored types that `keep_grid` moves to 8 bits."""
    moved = [kind for kind, blocks in _kinds(checkpoint) if kind not in FLOAT_TYPES and blocks is None]
    shapes = checkpoint.config.tensor_shapes()
    for name in (name for name in GATHERED if name in shapes):
        kind, blocks = checkpoint.stored_type(name), _grid_of(checkpoint, name)
        if blocks is not None and not _has_place(blocks, name):
            moved.append(f"{kind} of {GATHERED[name]}")
    of_experts = {checkpoint.stored_type(name): name for name in shapes if EXPERTS in name and len(shapes[name]) == 2}
    for kind, name in sorted(of_experts.items()):
        blocks = _grid_of(checkpoint, name)
        if blocks is not None and (blocks.offsets is not None or blocks.bits in LOWER_BITS):
            moved.append(f"{kind} of experts")
    return tuple(moved)

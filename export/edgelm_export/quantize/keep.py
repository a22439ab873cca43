"""keep: the grid that the source already has, repacked without rounding again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.block_grid import zero_places
from edgelm.architecture.quantization_scheme import Scheme
from edgelm_export.checkpoint import Checkpoint, QuantizedBlocks
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import PackedWeight, pack

FLOAT_TYPES = ("F32", "F16", "BF16")
# The block size is that of the source's blocks, so that no scale spans two of them.
_FALLBACK = Scheme(bits=8, block_size=32, symmetric=True, method="rounded")


def keep_grid(checkpoint: Checkpoint, name: str) -> PackedWeight | NDArray[np.float32]:
    """Repack a tensor on its own grid where that has integer zero points or none; float types stay float32.

    Other types have a float offset a block, with which MatMulNBits is 31 times slower
    (docs/results/graph-and-settings.md): they go to 8 bits, and the package says so.
    """
    blocks = checkpoint.quantized_blocks(name)
    if blocks is not None:
        return on_its_grid(blocks, checkpoint.config.tensor_shapes()[name][1])
    weight = checkpoint.tensor(name)
    if checkpoint.stored_type(name) in FLOAT_TYPES:
        return weight
    return quantize_alone(weight, _FALLBACK)


def on_its_grid(blocks: QuantizedBlocks, columns: int) -> PackedWeight:
    """Put signed values and zero points into the operator's layout, without rounding."""
    middle = 1 << (blocks.bits - 1)
    zeros = None if blocks.zero_points is None else _from_zero(blocks.zero_points, middle * zero_places(blocks.bits))
    return pack(_from_zero(blocks.values, middle), blocks.scales, zeros, bits=blocks.bits, columns=columns)


def _from_zero(values: NDArray[np.int8], middle: int) -> NDArray[np.uint8]:
    return (values.astype(np.int16) + middle).astype(np.uint8)


def moved_types(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name the stored types that `keep_grid` moves to 8 bits."""
    smallest: dict[str, str] = {}  # stored type -> one small tensor of it
    shapes = checkpoint.config.tensor_shapes()
    for name in sorted((name for name in shapes if len(shapes[name]) == 2), key=lambda name: np.prod(shapes[name])):
        smallest.setdefault(checkpoint.stored_type(name), name)
    return tuple(
        kind
        for kind, name in sorted(smallest.items())
        if kind not in FLOAT_TYPES and checkpoint.quantized_blocks(name) is None
    )

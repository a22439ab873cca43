"""keep: the grid that the source already has, repacked without rounding again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_export.checkpoint import Checkpoint
from edgelm_export.quantize.int8 import quantize_int8
from edgelm_export.quantize.packed import PackedWeight, pack

FLOAT_TYPES = ("F32", "F16", "BF16")
FALLBACK_BLOCK_SIZE = 32  # that of the source's blocks, so that no scale spans two of them


def keep_grid(checkpoint: Checkpoint, name: str) -> PackedWeight | NDArray[np.float32]:
    """Repack a tensor on its own grid: exact for Q4_0 and Q8_0; float types stay float32.

    The other types have a float offset a block, with which MatMulNBits is 31 times slower
    (docs/results/graph-and-settings.md): they go to 8 bits, and the package says so.
    """
    blocks = checkpoint.quantized_blocks(name)
    if blocks is not None:
        middle = 1 << (blocks.bits - 1)
        values = (blocks.values.astype(np.int16) + middle).astype(np.uint8)
        columns = checkpoint.config.tensor_shapes()[name][1]
        return pack(values, blocks.scales, None, bits=blocks.bits, columns=columns)
    weight = checkpoint.tensor(name)
    if checkpoint.stored_type(name) in FLOAT_TYPES:
        return weight
    return quantize_int8(weight, FALLBACK_BLOCK_SIZE)


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

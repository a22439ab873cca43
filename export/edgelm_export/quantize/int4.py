"""int4: symmetric, 4 bits, each block's scale searched for the least squared error, weighted by the weights' size.

Weighting by |weight| keeps the search from clipping the few large weights, which matter most: without it the error
falls and the perplexity rises (docs/results/graph-and-settings.md). It costs seconds at export, nothing at run time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgelm_export.quantize.packed import PackedWeight, in_blocks, pack

# Trial scales, as shares of the one that maps a block's largest weight to -8.
_SHARES = (0.88, 0.92, 0.96, 1.0, 1.04, 1.08)
# Small enough for the search's temporaries to stay in the cache: with large ones, most of the time goes into new pages.
_WEIGHTS_AT_ONCE = 1 << 16


def quantize_int4(weight_NK: NDArray[np.float32], block_size: int) -> PackedWeight:
    """Find integers -8..7 and a scale per block; the zero point is 8."""
    rows = max(1, _WEIGHTS_AT_ONCE // weight_NK.shape[1])
    parts = [
        _search(in_blocks(weight_NK[start : start + rows], block_size)) for start in range(0, len(weight_NK), rows)
    ]
    values, scales = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pack(values, scales, None, bits=4, columns=weight_NK.shape[1])


def _search(blocks: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return values 0..15 [N, blocks, block_size] and scales [N, blocks]."""
    importance = np.abs(blocks)
    largest = np.take_along_axis(blocks, importance.argmax(-1)[..., None], -1)[..., 0]
    start = largest / np.float32(-8)
    start[start == 0] = 1.0  # an empty block: any scale will do
    best_error = np.full(start.shape, np.inf, np.float32)
    best_scale, best_steps = start.copy(), np.zeros(blocks.shape, np.float32)
    for share in _SHARES:
        steps = np.clip(np.rint(blocks / (start * np.float32(share))[..., None]), -8, 7)
        # For these integers, the scale of least weighted error.
        norm = (importance * steps * steps).sum(-1)
        scale = np.divide((importance * steps * blocks).sum(-1), norm, out=start.copy(), where=norm > 0)
        error = (importance * np.square(steps * scale[..., None] - blocks)).sum(-1)
        better = error < best_error
        best_error[better], best_scale[better], best_steps[better] = error[better], scale[better], steps[better]
    return (best_steps + 8).astype(np.uint8), best_scale

"""Rows of logits, and what transformers makes of them."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

SIZES = (1, 2, 255, 256, 257, 5000)
Row = NDArray[np.float32]


def rows(size: int) -> list[Row]:
    rng = np.random.default_rng(size)
    return [(rng.standard_normal(size) * scale).astype(np.float32) for scale in (0.1, 1.0, 4.0, 20.0)]


def reference(process: Callable[..., torch.Tensor], row: Row, ids: list[int] | None = None) -> NDArray[np.float64]:
    # In float64, so that a border of top-p or typical does not hang on the oracle's own rounding.
    scores = torch.from_numpy(row.astype(np.float64))[None]
    result: NDArray[np.float64] = process(torch.tensor([ids or [0]]), scores)[0].numpy()
    return result

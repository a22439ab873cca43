"""Logits beside those of the source, which another worker has written to a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.log_likelihood import sum_log_likelihood

_ROWS_AT_ONCE = 32  # so that what is computed in between stays in the cache


def keep(logits_TV: NDArray[np.float32], path: str) -> None:
    """Write the source's logits for others to be compared with."""
    np.save(path, logits_TV)


def compare(logits_TV: NDArray[np.float32], ids: list[int], source: str) -> dict[str, float]:
    """Return the log-likelihood of all tokens but the first, mean KL(source || these), how often the best token is one.

    source: a .npy file with the source's logits [T, V] for the same tokens.
    """
    source_TV = np.load(source, mmap_mode="r")
    starts = range(0, len(ids), _ROWS_AT_ONCE)
    rows = [slice(start, start + _ROWS_AT_ONCE) for start in starts]
    return {
        "log_likelihood": sum_log_likelihood(logits_TV[:-1], ids[1:]),
        "divergence": sum(_divergence(source_TV[some], logits_TV[some]) for some in rows) / len(ids),
        "top1_agreement": float((source_TV.argmax(-1) == logits_TV.argmax(-1)).mean()),
    }


def _divergence(source_TV: NDArray[np.float32], other_TV: NDArray[np.float32]) -> float:
    """Sum KL(source || other); float32 rounds each by some 1e-6, a thousandth of the smallest of interest."""
    shifted_TV, others_TV = (logits_TV - logits_TV.max(-1, keepdims=True) for logits_TV in (source_TV, other_TV))
    weights_TV = np.exp(shifted_TV)
    sums_T = weights_TV.sum(-1, dtype=np.float64)
    apart_T = (weights_TV * (shifted_TV - others_TV)).sum(-1, dtype=np.float64) / sums_T
    return float((apart_T - np.log(sums_T) + np.log(np.exp(others_TV).sum(-1, dtype=np.float64))).sum())

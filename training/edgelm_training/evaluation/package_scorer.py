"""PackageScorer: the surprises of a model package, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.loading import load
from edgelm.runtime.session import PREFILL_CHUNK
from edgelm.runtime.session_options import SessionOptions


class PackageScorer:
    """Score with a package; see `perplexity.Scorer`.

    Raises:
        EdgeLMError: as `edgelm.load`.
    """

    kind = "package"

    def __init__(self, folder: Path, options: SessionOptions | None = None) -> None:
        model = load(folder, options)
        self.folder = folder
        self.config = model.config
        self.tokenizer = model.tokenizer
        self._session = model.session
        self._cache = model.session.new_cache()

    def surprises(self, ids: Sequence[int], first: int) -> NDArray[np.float64]:
        """Return -log p (natural) of each of ids[first:], given all ids before it."""
        self._cache.truncate(0)
        parts = []
        for start in range(0, len(ids) - 1, PREFILL_CHUNK):
            stop = min(start + PREFILL_CHUNK, len(ids) - 1)
            scored = stop >= first  # the logits at a place are those of the next token
            logits_TV = self._session.forward(ids[start:stop], self._cache, all_logits=scored)
            if scored:
                begin = max(start, first - 1)
                parts.append(_surprises(logits_TV[begin - start :], ids[begin + 1 : stop + 1]))
        return np.concatenate(parts)


def _surprises(logits_TV: NDArray[np.float32], targets: Sequence[int]) -> NDArray[np.float64]:
    shifted_TV = logits_TV - logits_TV.max(-1, keepdims=True)
    log_sums_T = np.log(np.exp(shifted_TV).sum(-1, dtype=np.float64))
    return np.asarray(log_sums_T - shifted_TV[np.arange(len(targets)), targets])

"""What a package computes, beside what it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.reference.model import reference_logits

Logits = NDArray[np.float32]


def logits_of(folder: Path, ids: Sequence[int]) -> Logits:
    session = DecoderSession(folder, ModelConfig.load(folder))
    return session.forward(ids, session.new_cache(), all_logits=True)


def distance(got: Logits, wanted: Logits) -> float:
    """Return how far two arrays are apart, as a share of the length of the second."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def distance_to_source(folder: Path, checkpoint: Checkpoint, ids: Sequence[int]) -> float:
    """Return how far a package's logits are from those of its source in numpy."""
    (expected_TV,) = reference_logits(checkpoint, [ids])
    return distance(logits_of(folder, ids), expected_TV)

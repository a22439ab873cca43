"""What a package computes, beside what it was exported from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig
from edgelm.runtime.session import DecoderSession
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.exporter import export_package
from edgelm_export.package_checkpoint import PackageCheckpoint
from edgelm_export.reference import reference_logits

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


def check_read_back(checkpoint: Checkpoint, folder: Path, ids: Sequence[int]) -> None:
    """Check that a package in float32 is its source again, to the bit, and that one of it is the same."""
    export_package(checkpoint, folder / "package", "fp32", name="tiny")
    with PackageCheckpoint(folder / "package") as package:
        assert package.config == checkpoint.config
        for name in checkpoint.config.tensor_shapes():
            np.testing.assert_array_equal(package.tensor(name), checkpoint.tensor(name), err_msg=name)
        export_package(package, folder / "again", "fp32", name="again")
    np.testing.assert_array_equal(logits_of(folder / "again", ids), logits_of(folder / "package", ids))

"""Packages for tests that compare the logits themselves: the exporter's own check takes half of a small export."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from edgelm.architecture.quantization_recipe import Precision
from edgelm.package.manifest import Manifest, Quality
from edgelm_export import exporter
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.quantize.calibration_text import CalibrationOptions

_UNKNOWN = Quality(
    tokens=1,
    perplexity=1.0,
    source_perplexity=1.0,
    max_logit_difference=0.0,
    mean_kl_divergence=0.0,
    top1_agreement=1.0,
    greedy_tokens=1,
    greedy_agreement=1,
)


def export_unchecked(
    checkpoint: Checkpoint, folder: Path, precision: str | Precision, *, calibration: CalibrationOptions | None = None
) -> Manifest:
    """Export a package, and leave it to the test to compare it with its source or with an oracle."""
    with patch.object(exporter, "measure_quality", return_value=_UNKNOWN):
        return exporter.export_package(checkpoint, folder, precision, calibration=calibration)

"""The quality certificate: what a package's manifest claims of its quality, computed again from its source."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgelm.counted import counted
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest, Quality
from edgelm.package.package_check import Finding
from edgelm_export.checkpoints.checked import Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.sources.sources import open_checkpoint
from edgelm_export.verification.verify import measure_quality

# On the machine that exported it, a package gives the same figures to the last digit. Another processor has other
# kernels, and 8-bit activations may round the other way there: room for that, and far from what damage does.
_RELATIVE = 0.02
_DIVERGENCE, _RELATIVE_DIVERGENCE = 1e-4, 0.1  # nats: the larger of the two counts
_AGREEMENT = 0.01
_DIFFERENCE, _RELATIVE_DIFFERENCE = 1e-3, 0.5  # one logit of all: a rounding more or less shows


def check_certificate(folder: Path, source: str, progress: Progress | None = None) -> list[Finding]:
    """Compute the quality of a package again, and compare it with what its manifest claims.

    source: what it was exported from, as `edgelm export` takes it. One finding says whether it is that source, and one
    for each figure whether it is as claimed. progress: as `measure_quality` calls it.

    Raises:
        CheckpointError, ModelNotFoundError: the source is not there, or broken.
        PackageError, ProviderError: the package does not load.
    """
    manifest = Manifest.load(folder)
    if manifest.quality is None:
        return [Finding(step="quality", detail="", problem="The manifest claims none: nothing measured the package.")]
    with open_checkpoint(Library().find_source(source)) as checkpoint:
        origin = _check_origin(manifest, checkpoint)
        if origin.problem is not None:
            return [origin]
        measured = measure_quality(folder, checkpoint, progress)
    claimed = [name for name in _ALIKE if getattr(manifest.quality, name) is not None]
    findings = [origin, *(_compare(name, manifest.quality, measured) for name in claimed)]
    # Not compared: one token that another processor chooses changes all that come after it.
    before, now = (f"{quality.greedy_agreement} of {quality.greedy_tokens}" for quality in (manifest.quality, measured))
    return [*findings, Finding(step="greedy_agreement", detail=f"{now} tokens (claimed {before})")]


def _check_origin(manifest: Manifest, checkpoint: Checkpoint) -> Finding:
    claimed, found = (_hashes(source) for source in (manifest.source, checkpoint.source))
    if claimed == found:
        files = counted(len(found), "file")
        return Finding(step="source", detail=f"{files} with the hashes that the manifest names")
    return Finding(
        step="source",
        detail="",
        problem="This is not what the package was exported from: its weight files have other hashes than the manifest "
        "names. Name the source itself, not a copy that was imported or trained further.",
    )


def _hashes(source: Mapping[str, Any]) -> list[str]:
    files = source.get("files", ())
    return sorted(str(file.get("sha256")) for file in files)


def _compare(name: str, claimed: Quality, measured: Quality) -> Finding:
    before, now = getattr(claimed, name), getattr(measured, name)
    detail = f"{now:.5g} (claimed {before:.5g})"
    problem = None if _ALIKE[name](before, now) else f"{now:.5g}, but the manifest claims {before:.5g}."
    return Finding(step=name, detail=detail, problem=problem)


def _alike(before: float, now: float) -> bool:
    return abs(now - before) <= _RELATIVE * abs(before)


# The figures that are compared, and how.
_ALIKE: dict[str, Callable[[float, float], bool]] = {
    "tokens": operator.eq,
    "greedy_tokens": operator.eq,
    "source_perplexity": _alike,
    "perplexity": _alike,
    "perplexity_after_prefill": _alike,  # of a package with a prefill graph
    "mean_kl_divergence": lambda before, now: abs(now - before) <= max(_DIVERGENCE, _RELATIVE_DIVERGENCE * before),
    "max_logit_difference": lambda before, now: abs(now - before) <= max(_DIFFERENCE, _RELATIVE_DIFFERENCE * before),
    "top1_agreement": lambda before, now: abs(now - before) <= _AGREEMENT,
}

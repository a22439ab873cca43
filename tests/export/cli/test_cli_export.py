"""Where `edgelm export` finds its source, and which name the package gets in the library."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import invoke
from make_tiny_model import make_checkpoint

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.errors import ExportError
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest
from edgelm.testing import tiny_model_path
from edgelm_export.cli import export as cli_export
from edgelm_export.quantize.calibration_text import CalibrationOptions


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Stand in for the exporter, and return the sources and the packages that it was called for."""
    calls: list[tuple[Path, Path]] = []

    def export_package(source: Path, output: Path, *_: object, **__: object) -> None:
        calls.append((source, output))
        raise ExportError("Not today.")

    monkeypatch.setattr(cli_export, "open_checkpoint", contextlib.nullcontext)
    monkeypatch.setattr(cli_export, "usual_precision", lambda _: PRECISIONS["int8"])
    monkeypatch.setattr(cli_export, "export_package", export_package)
    return calls


def export(*arguments: str):
    return invoke("export", *arguments)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Llama-3.2-1B", "llama-3.2-1b"),
        ("Llama-3.1-8B/", "llama-3.1-8b"),
        ("SmolLM2.Q4_1.GGUF", "smollm2.q4_1"),
        ("Qwen2.5-7B.q8_0-00001-of-00003.gguf", "qwen2.5-7b.q8_0"),
        ("~/Llama-3.2-1B", "llama-3.2-1b"),
        ("My Übermodel (final).gguf", "my-ubermodel-final"),
        ("hub/models--Org--Tiny-1B/snapshots/0a1b2c", "tiny-1b"),
        ("long" * 40, "long" * 20),
    ],
)
def test_a_package_is_named_like_its_source_dots_and_all(tmp_path, monkeypatch, exported, source, name):
    (tmp_path / source.removeprefix("~/")).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    export(source)
    export(source, "--precision", "int4")
    assert [target.name for _, target in exported] == [name, f"{name}-int4"]
    assert tmp_path in exported[0][0].resolve().parents


@pytest.mark.parametrize("source", ["模型", "千问-7B", "Straße"])
def test_a_source_whose_name_has_other_letters_than_a_package_needs_one(tmp_path, exported, source):
    (tmp_path / source).mkdir()
    result = export(str(tmp_path / source))
    assert result.exit_code == 2
    assert f"{source!r} gives no name for the package, which has letters from a to z. Choose its folder with -o" in (
        result.stderr
    )
    assert exported == []


def test_a_source_of_the_library_keeps_its_name(exported):
    folder = Library().source_path("My.Model")
    folder.mkdir(parents=True)
    (folder / "weights.gguf").touch()
    export("My.Model")
    assert exported == [(folder / "weights.gguf", Library().package_path("My.Model"))]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/", "There is no file or folder nowhere."),
        ("~nosuchuser/x", "There is no model at '~nosuchuser/x': "),
        ("nowhere", "There is no file or folder 'nowhere', and no source of that name"),
    ],
)
def test_a_source_that_is_nowhere_is_an_error_that_names_it(source, message):
    result = export(source, "-o", "package")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "options", [(), ("-o", "tiny"), ("-o", "TINY"), ("-o", "tiny", "--precision", "mixed", "--max-kl", "1")]
)
def test_a_package_that_is_read_is_not_written_over(monkeypatch, any_case, options):
    folder = shutil.copytree(tiny_model_path(), Library().package_path("tiny"))  # whose name int8 would have there
    monkeypatch.chdir(folder.parent)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = export(str(folder), *options)
    assert result.exit_code == 1
    assert " is the package that is read. Choose another folder with -o." in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_a_package_is_not_named_in_bytes_that_are_no_text(tmp_path):
    result = export(str(tiny_model_path()), "-o", str(tmp_path / "ex\udce9"))
    assert result.exit_code == 1
    assert r"error: 'ex\udce9' is no UTF-8, and a package has its folder's name. Choose another" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [None, "rules = 3\n"])
def test_a_recipe_that_cannot_be_read_is_wrong_usage(tmp_path, content):
    recipe = tmp_path / "mine.toml"
    if content is not None:
        recipe.write_text(content)
    result = export(str(tmp_path), "--recipe", str(recipe))
    assert result.exit_code == 2
    assert f"Invalid value for '--recipe': {recipe}" in result.stderr


def test_calibration_tokens_hold_for_smoothing_too(tmp_path):
    result = export(str(make_checkpoint(tmp_path / "ckpt")), "-o", str(tmp_path / "pkg"), "--calibration-tokens", "64")
    assert result.exit_code == 0, result.output
    assert "Smoothed on 64 tokens of the bundled text." in Manifest.load(tmp_path / "pkg").notes


@pytest.mark.parametrize(
    ("options", "precision"), [([], "keep"), (["--calibrate"], "int8"), (["--operators", "standard"], "int8")]
)
def test_a_source_keeps_its_own_4_bits_where_nothing_else_needs_others(tmp_path, monkeypatch, options, precision):
    chosen = []

    def export_package(_: object, __: Path, precision: Precision, calibration: CalibrationOptions, **___: Any) -> None:
        chosen.append(precision.name)
        assert calibration.cache == Library().calibration_path  # where a stopped calibration goes on
        raise ExportError("Not today.")

    monkeypatch.setattr(cli_export, "open_checkpoint", contextlib.nullcontext)
    monkeypatch.setattr(cli_export, "usual_precision", lambda _: PRECISIONS["keep"])
    monkeypatch.setattr(cli_export, "export_package", export_package)
    export(str(tmp_path), *options)
    assert chosen == [precision]


def test_an_alias_is_not_hidden_by_a_new_package(tmp_path, exported):
    (tmp_path / "ckpt").mkdir()
    shutil.copytree(tiny_model_path(), Library().package_path("other"))
    Library().add_alias("ckpt-int4", "other")
    result = export(str(tmp_path / "ckpt"), "--precision", "int4")
    assert (result.exit_code, exported) == (1, [])
    assert "error: 'ckpt-int4' is an alias of 'other'." in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp32", "--calibrate"], "There is nothing in fp32 to calibrate: --calibrate is for int8,"),
        (["--recipe", "plain.toml", "--calibrate"], "There is nothing in plain to calibrate:"),
        (["--recipe", "smooth.toml", "--calibrate"], "smooth reads the text for smooth and awq anyway, and none"),
        (["--precision", "int4", "--calibration-tokens", "9"], "are of no use here: int4 is made without running"),
        (["--recipe", "plain.toml", "--calibration", "own.txt"], "are of no use here: plain is made without running"),
        (["--precision", "int4", "--recipe", "plain.toml"], "either --precision or --recipe."),
        (
            ["--precision", "mixed", "--max-kl", "1", "--calibration-tokens", "9"],
            "--calibration-tokens without --calibrate is not for --precision mixed.",
        ),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(tmp_path, monkeypatch, exported, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt").mkdir()
    rules = 'rules = [{pattern = ".", scheme = "int4-block64"}]\n'
    (tmp_path / "plain.toml").write_text(rules)
    (tmp_path / "smooth.toml").write_text(f'transforms = ["smooth", "awq"]\n{rules}')
    result = export("ckpt", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "shows where it is set" not in result.stderr
    monkeypatch.setenv(f"EDGELM_EXPORT_{options[0][2:].upper()}", options[1])
    result = export("ckpt", *options[2:])
    assert message in result.stderr
    assert "`edgelm config export` shows where it is set." in " ".join(result.stderr.split())
    assert exported == []

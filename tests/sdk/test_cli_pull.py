"""`edgelm pull` goes on to `edgelm export`, and says what is there already and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edgelm import sources
from edgelm.cli import main as main_module
from edgelm.cli.main import main
from edgelm.errors import DownloadError, MissingExtraError
from edgelm.library import Library
from edgelm.testing import tiny_model_path


@pytest.fixture
def library(own_library: Path) -> Library:
    """Hold the source `small`, so that nothing is downloaded."""
    library = Library()
    folder = library.root / "sources" / "small"
    folder.mkdir(parents=True)
    (folder / "model.gguf").touch()
    (folder / "source.json").write_text('{"reference": "hf:org/small"}')
    return library


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Stand in for `edgelm export`, and return the calls of it."""
    calls: list[tuple[str, str, str]] = []

    @click.command()
    @click.argument("source")
    @click.option("-o", "--output")
    @click.option("--precision", type=click.Choice(["int8", "int4"]), default="int8")
    def export(source: str, output: str, precision: str) -> None:
        calls.append((source, output, precision))
        package = shutil.copytree(tiny_model_path(), Path(output), dirs_exist_ok=True)
        manifest = json.loads((package / "edgelm.json").read_text()) | {"precision": precision, "manifest_sha256": None}
        (package / "edgelm.json").write_text(json.dumps(manifest))

    replace_export(monkeypatch, export)
    return calls


def replace_export(monkeypatch: pytest.MonkeyPatch, export: click.Command | Exception) -> None:
    get_command = main_module.LazyGroup.get_command

    def replaced(group: click.Group, context: click.Context, name: str) -> click.Command | None:
        if name != "export":
            return get_command(group, context, name)
        if isinstance(export, Exception):
            raise export
        return export

    monkeypatch.setattr(main_module.LazyGroup, "get_command", replaced)


def pull(*arguments: str):
    return CliRunner().invoke(main, ["pull", *arguments])


def test_a_source_is_exported_under_its_name(library, exports):
    result = pull("small")
    assert result.exit_code == 0, result.output
    source, target = library.source_path("small"), library.package_path("small")
    assert exports == [(str(source), str(target), "int8")]
    assert result.stderr.splitlines() == [
        f"The source of small is in the library already: {source}",
        "Talk to it: edgelm chat small",
    ]


def test_a_package_that_is_here_is_not_made_again(library, exports):
    pull("small")
    for arguments in (["small"], ["hf:org/small"], ["small", "--precision", "int8"]):
        result = pull(*arguments)
        assert result.exit_code == 0
        assert result.stderr == "small is in the library already: edgelm chat small\n"
    assert len(exports) == 1


def test_another_precision_is_a_package_beside_the_first(library, exports):
    pull("small")
    result = pull("small", "--precision", "int4")
    assert result.stderr.endswith("Talk to it: edgelm chat small-int4\n")
    assert library.packages() == ["small", "small-int4"]
    assert pull("small", "--precision", "int4").stderr == (
        "small-int4 is in the library already: edgelm chat small-int4\n"
    )
    assert [precision for *_, precision in exports] == ["int8", "int4"]


def test_a_wrong_precision_is_refused_before_anything_else(library, exports):
    result = pull("hf:org/never-asked", "--precision", "int3")
    assert result.exit_code == 2
    assert "'int3' is not one of 'int8', 'int4'" in result.stderr


def test_without_the_export_extra_the_next_steps_are_named(library, monkeypatch):
    replace_export(monkeypatch, MissingExtraError("onnx is missing"))
    result = pull("small")
    assert result.exit_code == 0
    assert result.stderr.endswith(
        "To make a package of it: pip install 'edgelm[export]' and then: edgelm export small\n"
    )
    assert library.packages() == []


def test_source_only_makes_no_package(library, exports):
    assert pull("small", "--source-only").exit_code == 0
    assert exports == []


def test_an_unknown_model_is_an_error(own_library):
    result = pull("smollm")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: No model 'smollm' is known. Did you mean smollm2-135m-instruct?")


def test_a_folder_without_a_manifest_is_no_package(library, exports):
    library.package_path("small").mkdir(parents=True)
    assert pull("small").stderr.endswith("Talk to it: edgelm chat small\n")
    assert len(exports) == 1
    assert library.has_package("small")


@pytest.mark.parametrize(("arrived", "left"), [([], []), (["part"], ["new"])])
def test_a_pull_that_fails_keeps_what_arrived_and_no_empty_folder(library, monkeypatch, arrived, left):
    class Refusing:
        reference, name = "hf:org/new", "new"

        def fetch(self, staging, progress):
            for file in arrived:
                (staging / file).touch()
            raise DownloadError("The line is dead.")

    monkeypatch.setattr(sources, "resolve", lambda _: Refusing())
    result = pull("hf:org/new", "--source-only")
    assert (result.exit_code, result.stderr) == (1, "error: The line is dead.\n")
    assert [path.name for path in (library.root / "downloads").iterdir()] == left

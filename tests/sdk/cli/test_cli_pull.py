"""`edgelm pull` goes on to `edgelm export`, and says what is there already and what is missing."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import click
import pytest
from command_line import invoke
from json_files import change_json

from edgelm.cli import main as main_module
from edgelm.cli import output
from edgelm.errors import DownloadError, MissingExtraError
from edgelm.library import sources
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.known_source import KnownSource
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest
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
        change_json(package / "edgelm.json", precision=precision, manifest_sha256=None)

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
    return invoke("pull", *arguments)


def test_a_source_is_exported_under_its_name(library, exports):
    result = pull("small")
    assert result.exit_code == 0, result.output
    source, target = library.source_path("small"), library.package_path("small")
    assert exports == [(str(source), str(target), "int8")]
    assert result.stderr.splitlines() == [
        f"The source of small is in the library already: {source}",
        "Try it: edgelm chat small",
    ]


def test_a_package_without_a_chat_template_is_run_not_talked_with(library, exports):
    pull("small")
    manifest = Manifest.load(folder := library.package_path("small"))
    files = tuple(entry for entry in manifest.files if entry.path != "chat_template.jinja")
    dataclasses.replace(manifest, files=files).save(folder)
    assert pull("small").stderr == 'small is in the library already: edgelm run small "The sea is blue."\n'


def test_a_source_is_exported_under_the_name_that_it_was_given(library, exports):
    (library.root / "sources" / "small").rename(library.root / "sources" / "mine")
    assert pull("mine").stderr.endswith("Try it: edgelm chat mine\n")
    assert library.packages() == ["mine"]


def test_a_package_that_is_here_is_not_made_again(library, exports):
    pull("small")
    for arguments in (["small"], ["hf:org/small"], ["small", "--precision", "int8"]):
        result = pull(*arguments)
        assert result.exit_code == 0
        assert result.stderr == "small is in the library already: edgelm chat small\n"
    assert len(exports) == 1


@pytest.mark.parametrize("arguments", [["hf:other/small"], ["hf:org/small@v2"], ["hf:org/big", "--name", "small"]])
def test_a_package_of_another_model_is_not_taken_for_the_one_that_is_asked_for(library, exports, arguments):
    pull("small")
    result = pull(*arguments)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: The name 'small' belongs to hf:org/small in the library. Choose another for "
        f"{arguments[0]}: edgelm pull {arguments[0]} --name NAME\n"
    )
    assert len(exports) == 1


def test_another_precision_is_a_package_beside_the_first(library, exports):
    pull("small")
    result = pull("small", "--precision", "int4")
    assert result.stderr.endswith("Try it: edgelm chat small-int4\n")
    assert library.packages() == ["small", "small-int4"]
    assert pull("small", "--precision", "int4").stderr == (
        "small-int4 is in the library already: edgelm chat small-int4\n"
    )
    assert [precision for *_, precision in exports] == ["int8", "int4"]


def test_a_wrong_precision_is_refused_before_anything_else(library, exports):
    result = pull("hf:org/never-asked", "--precision", "int3")
    assert result.exit_code == 2
    assert "'int3' is not one of 'int8', 'int4'" in result.stderr


def test_mixed_precision_is_for_the_export_and_refused_before_anything_comes(library, exports):
    result = pull("small", "--name", "other", "--precision", "mixed")
    assert result.exit_code == 2
    assert "pull it with --source-only, and then: edgelm export other --precision mixed --target-size" in result.stderr
    assert (exports, library.sources()) == ([], ["small"])


def test_without_the_export_extra_the_next_steps_are_named(library, monkeypatch):
    replace_export(monkeypatch, MissingExtraError("onnx is missing"))
    result = pull("small")
    assert result.exit_code == 0
    assert result.stderr.endswith(
        'To make a package of it: pip install "edgelm[export]" and then: edgelm export small\n'
    )
    assert library.packages() == []


def test_source_only_makes_no_package(library, exports):
    result = pull("small", "--source-only")
    said = f"The source of small is in the library already: {library.source_path('small')}\n"
    assert (result.exit_code, result.stderr) == (0, said)
    assert exports == []


def test_an_unknown_model_is_an_error(own_library):
    result = pull("smollm")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: No model 'smollm' is known. Did you mean smollm2-")


@pytest.mark.parametrize("written", ["ORG/a-model.1", "https://huggingface.co/ORG/a-model.1/", "hf.co/ORG/a-model.1"])
def test_a_repository_of_the_hub_in_other_words_is_told_how_it_is_written(own_library, written):
    result = pull(written)
    assert result.exit_code == 1
    assert f"No model {written!r} is known. Did you mean hf:ORG/a-model.1? Known by name: " in result.stderr


def test_what_is_on_this_machine_is_exported_not_pulled(own_library, tmp_path, monkeypatch):
    (tmp_path / "my model").mkdir()
    monkeypatch.chdir(tmp_path)
    result = pull("./my model")
    assert (result.exit_code, result.stderr) == (
        1, "error: './my model' is on this machine already. Make a package of it: edgelm export './my model'\n",
    )  # fmt: skip
    assert "Did you mean" not in pull("./nothing").stderr


@pytest.fixture
def under_terms(monkeypatch: pytest.MonkeyPatch) -> list[FetchOptions]:
    """Let gemma-3-270m, whose terms must be agreed to, arrive without a network; return how it was fetched."""
    fetched: list[FetchOptions] = []

    def fetch(self: KnownSource, staging: Path, options: FetchOptions) -> tuple[Path, dict[str, str]]:
        fetched.append(options)
        folder = staging / "unpacked"
        folder.mkdir()
        (folder / "model.gguf").touch()
        return folder, {}

    monkeypatch.setattr(KnownSource, "fetch", fetch)
    return fetched


def test_a_package_that_cannot_be_read_is_an_error_that_says_how_to_pull_it_anew(library, exports):
    package = Path(shutil.copytree(tiny_model_path(), library.package_path("small")))
    (package / "edgelm.json").write_text('{"schema_version": 2}')
    for arguments in (["small"], ["small", "--precision", "int8"]):
        result = pull(*arguments)
        assert result.exit_code == 1
        assert "this edgelm reads 1. Update edgelm. To pull it anew, remove " in result.stderr
    shutil.rmtree(package)
    assert pull("small").exit_code == 0
    assert len(exports) == 1


def test_terms_must_be_agreed_to_before_the_download(own_library, exports, under_terms):
    result = pull("gemma-3-270m")
    assert result.exit_code == 2
    assert "gemma-3-270m is under terms of its own: https://ai.google.dev/gemma/terms" in result.stderr
    assert "Nobody is here to ask: read the terms, and add --accept-license to agree to them." in result.stderr
    assert under_terms == []
    result = pull("gemma-3-270m", "--accept-license")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("gemma-3-270m is under terms of its own")
    assert "under terms" not in pull("gemma-3-270m", "--precision", "int4").stderr  # it is here


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0)])
def test_terms_are_asked_for_on_a_terminal(own_library, exports, under_terms, monkeypatch, answer, code):
    monkeypatch.setattr(output, "is_terminal", lambda _: True)
    result = invoke("pull", "gemma-3-270m", stdin=answer)
    assert "Do you agree to them? [y/N]" in result.stderr
    assert result.exit_code == code
    assert len(under_terms) == (code == 0)


def test_the_options_of_the_download_reach_it(own_library, exports, under_terms, tmp_path):
    token = tmp_path / "token"
    arguments = ["gemma-3-270m", "--accept-license", "--connections", "2", "--token-file", str(token)]
    assert pull(*arguments).exit_code == 0
    assert (under_terms[0].connections, under_terms[0].token_file) == (2, token)
    assert under_terms[0].package_share > 1  # 8 bits for a file of 4
    Library().remove("gemma-3-270m")
    assert pull(*arguments, "--source-only").exit_code == 0
    assert under_terms[1].package_share == 0
    refused = pull("gemma-3-270m", "--connections", "0")
    assert (refused.exit_code, "connections is 0; it must be from 1 to 16." in refused.stderr) == (2, True)


def test_what_is_here_as_a_package_comes_once_more_under_another_name_or_as_a_source(own_library, exports, under_terms):
    pull("gemma-3-270m", "--accept-license")
    Library().remove("gemma-3-270m", source_only=True)
    assert pull("gemma-3-270m", "--accept-license", "--source-only").exit_code == 0
    assert pull("gemma-3-270m", "--accept-license", "--name", "second").exit_code == 0
    assert (Library().packages(), Library().sources()) == (["gemma-3-270m", "second"], ["gemma-3-270m", "second"])
    assert len(under_terms) == 3


def test_a_package_does_not_take_the_name_of_an_alias(library, exports):
    library.add_alias("small-int4", "small")
    result = pull("small", "--precision", "int4")
    assert (result.exit_code, exports) == (1, [])
    assert "error: 'small-int4' is an alias of 'small'." in result.stderr


def test_a_folder_without_a_manifest_is_no_package(library, exports):
    library.package_path("small").mkdir(parents=True)
    assert pull("small").stderr.endswith("Try it: edgelm chat small\n")
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

"""Aliases: a second name stands wherever a model's name does, leads in no circle, and hides no model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import invoke

import edgelm
from edgelm.cli.generation_options import complete_kept, complete_model, complete_source
from edgelm.cli.main import main
from edgelm.errors import ConfigError, ModelNotFoundError
from edgelm.library import sources
from edgelm.library.library import Library
from edgelm.testing import tiny_model_path


@pytest.fixture
def library(own_library: Path) -> Library:
    """Hold the package `tiny` and the source `original`."""
    library = Library()
    shutil.copytree(tiny_model_path(), library.package_path("tiny"))
    (library.root / "sources" / "original").mkdir(parents=True)
    (library.root / "sources" / "original" / "model.gguf").touch()
    return library


def test_an_alias_stands_where_a_models_name_does(library):
    assert library.add_alias("small", "tiny") == "tiny"
    assert library.find("small") == library.package_path("tiny")
    assert edgelm.load("small").name == edgelm.load("tiny").name
    library.add_alias("raw", "original")
    assert library.find_source("raw") == library.source_path("original")
    with pytest.raises(ModelNotFoundError, match="Only the source of 'original' is in the library"):
        library.find("raw")
    assert library.aliases() == {"raw": "original", "small": "tiny"}


def test_commands_take_aliases(library):
    for _ in range(2):
        assert invoke("alias", "small", "tiny").stderr == "small means tiny now: edgelm chat small\n"
    assert invoke("show", "small").stdout == invoke("show", "tiny").stdout
    pulled = invoke("pull", "small")
    assert pulled.stderr == "tiny is in the library already: edgelm chat tiny\n"


def test_shells_complete_aliases(library):
    library.add_alias("small", "tiny")
    offered = {
        complete: [item.value for item in complete(click.Context(main), main.params[0], "s")]
        for complete in (complete_model, complete_source, complete_kept)
    }
    assert offered == {complete_model: ["s", "small"], complete_source: ["s"], complete_kept: ["small"]}


def test_a_server_takes_aliases_and_answers_with_the_models_name(library):
    from edgelm.server.model_pool import ModelPool
    from edgelm.server.options import ServerOptions

    library.add_alias("small", "tiny")
    for models in ((), ("tiny",), ("small",)):
        pool = ModelPool(models, ServerOptions())
        assert list(pool.folders()) == ["tiny"]
        assert pool.resolve("small") == "tiny"
        assert pool.package("small").manifest == pool.package("tiny").manifest


def test_an_alias_of_an_alias_means_the_model(library):
    library.add_alias("small", "tiny")
    assert library.add_alias("smaller", "small") == "tiny"
    library.remove_alias("small")
    assert library.resolve("smaller") == "tiny"


def test_an_alias_can_change_its_meaning(library):
    library.add_alias("mine", "tiny")
    result = invoke("alias", "mine", "original")
    assert result.stderr == "mine means original now (it was tiny): edgelm chat mine\n"
    assert library.resolve("mine") == "original"


def test_no_alias_leads_in_a_circle(library):
    library.add_alias("small", "tiny")
    for target in ("small", "tiny"):
        with pytest.raises(ConfigError, match=f"The alias '{target}' would mean itself"):
            library.add_alias(target, target)
    library.remove("tiny")
    with pytest.raises(ConfigError, match="The alias 'tiny' would mean itself"):
        library.add_alias("tiny", "small")


def test_an_alias_hides_no_model(library):
    library.add_alias("small", "tiny")
    with pytest.raises(ConfigError, match="'original' is a model of the library, which an alias may not hide"):
        library.add_alias("original", "tiny")
    with pytest.raises(ConfigError, match=r"'qwen3-0\.6b' is a model of the catalogue of `edgelm pull`"):
        library.add_alias("qwen3-0.6b", "tiny")
    # A folder that somebody put there by hand comes first.
    shutil.copytree(tiny_model_path(), library.package_path("small"))
    assert library.resolve("small") == "small"
    assert library.aliases() == {}


def test_no_new_model_takes_the_name_of_an_alias(library):
    library.add_alias("small", "tiny")
    with pytest.raises(ConfigError, match=r"'small' is an alias of 'tiny'. .* edgelm alias --remove small"):
        sources.fetch(sources.resolve("hf:org/small"), library, "small")
    result = invoke("pull", "hf:org/other", "--name", "small")
    assert result.exit_code == 1
    assert "'small' is an alias of 'tiny'. Choose another name for the new model" in result.stderr
    library.add_alias("original-int4", "tiny")
    result = invoke("export", "original", "--precision", "int4")
    assert "'original-int4' is an alias of 'tiny'" in result.stderr


@pytest.mark.parametrize("name", ["../up", "", ".hidden", "a/b"])
def test_an_alias_has_a_valid_name(library, name):
    with pytest.raises(ConfigError, match="is not a name for a model"):
        library.add_alias(name, "tiny")
    assert invoke("alias", name, "tiny").exit_code == 2


def test_an_alias_needs_a_model(library):
    with pytest.raises(ModelNotFoundError, match=r"There is no model 'tinny'\. Did you mean tiny"):
        library.add_alias("small", "tinny")
    for nothing in ("", ".", ".."):  # `models` and its parent are folders too
        with pytest.raises(ModelNotFoundError, match=rf"There is no model '{re.escape(nothing)}'"):
            library.add_alias("small", nothing)
    folder = r"^An alias means a model of the library, not a folder\. There is no model '\.\./up'"
    with pytest.raises(ModelNotFoundError, match=folder):
        library.add_alias("small", "../up")


def test_an_alias_of_a_removed_model_says_so(library):
    library.add_alias("small", "tiny")
    library.remove("tiny")
    with pytest.raises(ModelNotFoundError, match="There is no model 'tiny', which 'small' is an alias of"):
        library.find("small")
    assert "small  tiny (not here)" in invoke("alias").stdout
    assert re.search(r"^small +\(alias\) +tiny \(not here\)$", invoke("list").stdout, re.MULTILINE)
    assert invoke("rm", "small", "--yes").stderr == "Removed small, an alias of tiny, which is not here.\n"


@pytest.mark.parametrize("content", [b"", b"../../up\n", b"\xff", b"x" * 200])
def test_a_broken_alias_is_none(library, content):
    library.add_alias("small", "tiny")
    (library.root / "aliases" / "small").write_bytes(content)
    assert library.aliases() == {}
    with pytest.raises(ModelNotFoundError, match="There is no model 'small'"):
        library.find("small")
    library.add_alias("small", "tiny")
    assert library.resolve("small") == "tiny"


def test_alias_lists_what_there_is(library):
    assert invoke("alias").stderr == "There are no aliases. Make one: edgelm alias NAME MODEL\n"
    library.add_alias("small", "tiny")
    assert invoke("alias").stdout.splitlines() == ["ALIAS  MODEL", "small  tiny"]
    assert json.loads(invoke("alias", "--json").stdout) == {"small": "tiny"}


def test_alias_is_removed_by_name_and_its_model_stays(library):
    library.add_alias("small", "tiny")
    assert invoke("alias", "--remove", "small").stderr == "Removed the alias small.\n"
    library.add_alias("small", "tiny")
    assert invoke("rm", "small", "--yes").stderr == "Removed small, an alias of tiny; tiny stays.\n"
    assert (library.aliases(), library.packages()) == ({}, ["tiny"])
    result = invoke("alias", "--remove", "small")
    assert (result.exit_code, result.stderr) == (1, "error: There is no alias 'small'. There: none.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small"], "Say which model 'small' is to mean: edgelm alias small TARGET"),
        (["small", "tiny", "--json"], "--json is for the list, without NAME."),
        (["small", "--remove", "small"], "--remove NAME stands alone."),
        (["--remove", "small", "--json"], "--remove NAME stands alone."),
    ],
)
def test_alias_is_told_what_to_do(library, arguments, message):
    result = invoke("alias", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


_CHANGE = """
import sys
from pathlib import Path
from edgelm.library.library import Library
for _ in range(30):
    Library(Path(sys.argv[1])).add_alias("mine", sys.argv[2])
"""


def test_an_alias_that_two_processes_change_always_means_one_of_both(library):
    processes = [
        subprocess.Popen([sys.executable, "-c", _CHANGE, library.root, target]) for target in ("tiny", "original")
    ]
    seen = set()
    while any(process.poll() is None for process in processes):
        seen.add(library.resolve("mine"))
    assert [process.returncode for process in processes] == [0, 0]
    assert seen <= {"mine", "tiny", "original"}
    assert library.resolve("mine") in ("tiny", "original")
    assert [path.name for path in (library.root / "aliases").iterdir()] == ["mine"]

"""`edgelm list`, `show` and `rm`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import invoke
from json_files import change_json

from edgelm.cli.output import megabytes
from edgelm.library.catalogue import CATALOGUE
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest
from edgelm.testing import tiny_model_path


@pytest.fixture
def library(own_library) -> Library:
    """Hold a package, a source, a broken package, and an unfinished download."""
    library = Library()
    shutil.copytree(tiny_model_path(), library.package_path("tiny"))
    (library.root / "models" / "broken").mkdir()
    source = library.root / "sources" / "original"
    source.mkdir(parents=True)
    (source / "model.gguf").write_bytes(b"x" * 2_000_000)
    library.downloads_path("half").mkdir(parents=True)
    return library


def test_an_empty_list_says_how_to_begin(own_library):
    result = invoke("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "edgelm pull smollm2-135m-instruct" in result.stderr
    assert invoke("list", "--json").stdout == "[]\n"


def test_list_shows_packages_with_their_figures_and_marks_the_rest(library):
    library.add_alias("mine", "tiny")
    result = invoke("list")
    rows = [line.split() for line in result.stdout.splitlines()]
    quality = Manifest.load(tiny_model_path()).quality
    assert quality is not None
    assert rows[0] == ["NAME", "PRECISION", "SIZE", "CONTEXT", "QUALITY"]
    assert rows[1] == ["broken", "(broken)", "0.0", "kB"]
    assert rows[2] == ["mine", "(alias)", "tiny"]
    assert rows[3] == ["original", "(source)", "2.0", "MB"]
    ratio = quality.perplexity / quality.source_perplexity
    assert rows[4][:2] + rows[4][4:] == ["tiny", "fp32", "1024", f"×{ratio:.3f}"]
    assert "warning: broken:" in result.stderr
    assert "is not a model package" in result.stderr


def test_a_package_with_figures_that_are_none_hides_no_other(library):
    manifest = json.loads((tiny_model_path() / "edgelm.json").read_text())
    manifest["quality"]["source_perplexity"] = 0
    (library.package_path("broken") / "edgelm.json").write_text(json.dumps(manifest | {"manifest_sha256": None}))
    result = invoke("list")
    assert result.exit_code == 0
    assert "warning: broken: " in result.stderr
    assert "source_perplexity is 0" in result.stderr
    assert "\ntiny " in result.stdout


def test_list_as_json_is_for_programs(library):
    library.add_alias("mine", "tiny")
    (library.root / "sources" / "parts").mkdir()
    for number in (1, 2):
        (library.root / "sources" / "parts" / f"model-0000{number}-of-00002.gguf").write_bytes(b"x" * number)
    rows = {row["name"]: row for row in json.loads(invoke("list", "--json").stdout)}
    assert {name: row["kind"] for name, row in rows.items()} == {
        "broken": "broken",
        "mine": "alias",
        "original": "source",
        "parts": "source",
        "tiny": "package",
    }
    assert rows["mine"]["target"] == "tiny"
    assert rows["tiny"]["context_length"] == 1024
    assert rows["tiny"]["path"] == str(library.package_path("tiny"))
    assert rows["tiny"]["perplexity_over_source"] == pytest.approx(1.0, abs=0.01)  # fp32
    assert rows["original"]["size"] == 2_000_000
    assert rows["parts"]["size"] == 3


def test_list_shows_what_can_be_pulled(own_library):
    (own_library / "sources" / "qwen3-0.6b").mkdir(parents=True)
    result = invoke("list", "--available")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["NAME", "LICENSE", "SIZE", "PRECISION", "CONTEXT"]
    assert rows[1] == ["smollm2-135m-instruct", "Apache-2.0", "92.9", "MB", "Q4_1", "8192"]
    assert ["qwen3-0.6b", "Apache-2.0", "1.50", "GB", "bf16", "40960", "here"] in rows
    assert ["qwen3-1.7b", "Apache-2.0", "4.10", "GB", "bf16", "40960", "not", "yet", "tried"] in rows
    assert "edgelm pull NAME" in result.stderr
    models = {row["name"]: row for row in json.loads(invoke("list", "--available", "--json").stdout)}
    assert models.keys() == CATALOGUE.keys()
    assert models["gemma-3-270m"]["terms"] == "https://ai.google.dev/gemma/terms"
    assert models["qwen3-0.6b"]["is_here"] is True


def test_show_tells_what_a_package_is(library):
    for model in ("tiny", str(tiny_model_path())):
        shown = invoke("show", model).stdout
        for part in ("fp32", "1024 tokens", "perplexity", "model.onnx.data", "sha256", "source", "not stated"):
            assert part in shown
        # 2 layers x (key, value) x 1 head x 16 x 4 bytes
        assert "0.2 KiB per token" in shown
    facts = json.loads(invoke("show", "tiny", "--json").stdout)
    assert facts["kv_cache_bytes_per_token"] == 2 * 2 * 1 * facts["config"]["head_dim"] * 4
    assert facts["manifest"]["quality"]["perplexity"] > 0


def test_a_link_to_a_package_is_as_large_as_the_package(library):
    size = json.loads(invoke("show", "tiny", "--json").stdout)["size"]
    assert size > 100_000
    (library.root / "models" / "linked").symlink_to(tiny_model_path())
    assert json.loads(invoke("show", "linked", "--json").stdout)["size"] == size
    assert f"size                  {megabytes(size)}\n" in invoke("show", "linked").stdout
    sizes = {row["name"]: row["size"] for row in json.loads(invoke("list", "--json").stdout)}
    assert sizes["linked"] == sizes["tiny"] == size


def test_show_says_where_quality_was_not_measured_and_shows_notes(library):
    path = library.package_path("tiny") / "edgelm.json"
    change_json(path, quality=None, notes=["Q4_1 went to 8 bits."], manifest_sha256=None)
    shown = invoke("show", "tiny").stdout
    assert "not measured" in shown
    assert "Q4_1 went to 8 bits." in shown


@pytest.mark.parametrize("command", [("show", "tiny", "--json", "--bom"), ("config", "--path", "--json")])
def test_two_outputs_at_once_are_wrong_usage(library, command):
    result = invoke(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{command[-2]} and {command[-1]} exclude each other; give one." in result.stderr


def test_show_of_a_missing_model_is_an_error(library):
    result = invoke("show", "original")
    assert result.exit_code == 1
    assert "error: Only the source of 'original' is in the library." in result.stderr


def test_rm_in_a_script_asks_nobody(library):
    result = invoke("rm", "tiny")
    assert (result.exit_code, result.stderr) == (0, "Removed tiny.\n")
    assert "tiny" not in library.packages()


def test_rm_of_a_missing_model_beside_others_asks_nobody_and_removes_nothing(library):
    for flags in ([], ["--yes"]):
        result = invoke("rm", "tiny", "zzz", *flags)
        assert result.exit_code == 1
        assert "There is no model 'zzz' to remove. In the library: broken, half, original, tiny." in result.stderr
        assert "tiny" in library.packages()


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["tinx"], "model 'tinx' to remove. Did you mean tiny? In the library: broken, half, original, other, tiny."),
        (["othr"], "model 'othr' to remove. Did you mean other? In the library: broken, half, original, other, tiny."),
        (["halb"], "model 'halb' to remove. Did you mean half? In the library: broken, half, original, other, tiny."),
        (["tiny", "--source-only"], "source of 'tiny' to remove. With a source: half, original."),
    ],
)
def test_rm_of_a_missing_model_names_what_it_could_remove(library, arguments, advice):
    library.add_alias("other", "tiny")
    result = invoke("rm", *arguments, "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"error: There is no {advice}\n")


def test_rm_removes_packages_sources_and_downloads(library):
    result = invoke("rm", "tiny", "original", "half", "--yes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "Removed tiny.\nRemoved original.\nRemoved half.\n"
    assert (library.packages(), library.sources()) == (["broken"], [])


def test_rm_of_one_name_twice_removes_it_once(library):
    result = invoke("rm", "tiny", "tiny", "--yes")
    assert (result.exit_code, result.stderr) == (0, "Removed tiny.\n")


def test_rm_can_leave_the_package(library):
    shutil.copytree(tiny_model_path(), library.package_path("original"))
    library.add_alias("raw", "original")
    result = invoke("rm", "raw", "--source-only", "--yes")
    assert result.stderr == "Removed the source of original.\n"
    assert library.aliases() == {"raw": "original"}
    assert (library.packages(), library.sources()) == (["broken", "original", "tiny"], [])
    result = invoke("rm", "original", "--source-only", "--yes")
    assert "error: There is no source of 'original' to remove." in result.stderr


@pytest.mark.parametrize(("answer", "code", "left"), [(b"n\n", 1, True), (b"y\n", 0, False)])
def test_rm_asks_on_a_terminal(library, answer, code, left):
    import pty

    main_end, terminal = pty.openpty()
    script = "from edgelm.cli.main import main; main(prog_name='edgelm')"
    process = subprocess.Popen([sys.executable, "-c", script, "rm", "tiny"], stdin=terminal, stderr=subprocess.PIPE)
    os.write(main_end, answer)
    _, asked = process.communicate()
    os.close(terminal)
    os.close(main_end)
    assert b"Remove tiny from the library? [y/N]" in asked
    assert process.returncode == code
    assert Path(library.package_path("tiny")).exists() is left


def test_rm_says_for_whom_it_waits(library):
    script = "from edgelm.cli.main import main; main(prog_name='edgelm')"
    with library.lock("tiny"):
        process = subprocess.Popen(
            [sys.executable, "-c", script, "rm", "tiny", "--yes"], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        assert process.stderr.readline() == f"Waiting for process {os.getpid()}, which works on tiny …\n"
        assert "tiny" in library.packages()
    assert process.communicate()[1] == "Removed tiny.\n"


def test_show_commands_no_terminal(library):
    path = library.package_path("tiny") / "edgelm.json"
    change_json(path, notes=["a \x1b[31mred note"], manifest_sha256=None)
    assert "a [31mred note" in invoke("show", "tiny").stdout

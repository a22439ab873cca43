"""What `edgelm` offers to a shell that completes its words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig

import pytest
from click.testing import CliRunner
from command_line import invoke

from edgelm.cli.main import main


def complete_in_bash(*lines: str) -> list[list[str]]:
    """Let click's script for bash say what it offers for the last word of each line."""
    script = """
compopt() { :; }  # which bash has where somebody types alone
eval "$(_EDGELM_COMPLETE=bash_source edgelm)"
for line in "$@"; do
  COMPREPLY=() COMP_WORDS=($line) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _edgelm_completion edgelm
  echo "${COMPREPLY[@]}"
done
"""
    environment = os.environ | {"PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script, "bash", *lines], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return [line.split() for line in result.stdout.splitlines()]


def complete(words: str, cursor: int) -> list[str]:
    """Ask for completions as bash does."""
    environment = {"_EDGELM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(cursor)}
    result = CliRunner().invoke(main, prog_name="edgelm", env=environment)
    assert result.stderr == ""
    return result.stdout.split()


def test_shells_complete_commands_options_and_models(own_library):
    (own_library / "models" / "tiny").mkdir(parents=True)
    assert complete("edgelm pul", 1) == ["plain,pull"]
    assert "plain,--temperature" in complete("edgelm run x --te", 3)
    assert "plain,tiny" in complete("edgelm chat t", 2)
    (own_library / "aliases").mkdir()
    (own_library / "aliases" / "small").write_text("tiny\n")
    assert complete("edgelm alias --remove s", 3) == ["plain,small"]
    assert complete("edgelm pull smollm2-13", 2) == ["plain,smollm2-135m-instruct"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_offers_names_where_one_fits_and_paths_elsewhere(own_library):
    for name in ("models/tiny", "sources/tiny-source"):
        (own_library / name).mkdir(parents=True)
    # Nothing for the last: bash goes on with folders.
    assert complete_in_bash("edgelm chat t", "edgelm chat ./t") == [["tiny"], []]
    assert "plain,tiny-source" in complete("edgelm verify x --source t", 4)
    assert complete("edgelm rm t", 2) == ["plain,tiny", "plain,tiny-source"]
    assert complete("edgelm import ./t", 2) == ["file,./t"]
    assert complete("edgelm chat --adapter ./a", 3) == ["dir,./a"]


def test_a_shell_that_completes_sees_no_errors(own_library):
    own_library.mkdir()
    (own_library / "models").touch()  # a library that cannot be read
    assert complete("edgelm chat t", 2) == ["dir,t"]


def test_completion_is_explained_in_the_help():
    assert 'eval "$(_EDGELM_COMPLETE=bash_source edgelm)"' in invoke("--help").output

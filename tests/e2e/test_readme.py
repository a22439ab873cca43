"""The README's commands and programs run as they are written, on the real model."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from make_tiny_model import make_checkpoint

import edgelm
from edgelm.library.sources import RECORD_NAME

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# These set up what runs this test: the continuous integration calls them.
SETUP = ("make ", "pip ")
REAL_MODEL = "smollm2-135m-instruct"
# The command on one thread, as several wait for each other where tests run side by side.
QUICK = f"""#!/bin/sh
exec "{sys.executable}" -c '
from edgelm.runtime import cpu
cpu.physical_cores = lambda *_: 1
from edgelm.cli.start import main
main()' "$@"
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def pulled(smollm2_gguf: Path, smollm2_package: Path, own_library: Path) -> None:
    """Put what `edgelm pull` made of the real model into the library, and for its source a small one.

    The real one is imported and exported for test_real_model.py.
    """
    source = make_checkpoint(own_library / "sources" / REAL_MODEL)
    shutil.copy(smollm2_gguf.parent / RECORD_NAME, source)
    shutil.copytree(smollm2_package, own_library / "models" / REAL_MODEL)


@pytest.mark.real_model
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("pulled")
def test_the_commands_run_in_the_order_in_which_they_stand(tmp_path: Path) -> None:
    lines = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    commands = [line for line in lines if line and not line.startswith(SETUP)]
    assert len(commands) >= 10
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / "corpus" / f"{number}.txt").write_text(
            f"Story {number}. {README[number * 100 :]}", encoding="utf-8"
        )
    quick = tmp_path / "quick" / "edgelm"
    quick.parent.mkdir()
    quick.write_text(QUICK)
    quick.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(quick.parent), os.environ["PATH"])),
        "EDGELM_RUN_MAX_NEW_TOKENS": "8",
        # A step is 4,096 tokens else, and an evaluation 32,768: more than a minute of processor time in all.
        "EDGELM_TRAIN_GLOBAL_BATCH_SIZE": "1", "EDGELM_TRAIN_EVAL_ROWS": "4", "EDGELM_TRAIN_SEQUENCE_LENGTH": "128",
    }  # fmt: skip
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("edgelm pull"):
            assert done.stderr == f"{REAL_MODEL} is in the library already: edgelm chat {REAL_MODEL}\n"
        if command.startswith("edgelm run"):
            assert done.stdout, command  # a model of twenty steps may say nothing but line ends


@pytest.mark.real_model
def test_the_program_runs(smollm2_package: Path, own_library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(smollm2_package, own_library / "models" / REAL_MODEL)
    (program,) = blocks("python")
    shorter = program.replace("max_new_tokens=64", "max_new_tokens=4")
    assert shorter != program
    exec(compile(shorter, "program.py", "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) > 1.0  # the perplexity


def test_every_path_of_the_plan_of_the_house_exists() -> None:
    folder, plan = ROOT, README.partition("## The house\n")[2].split("```")[1]
    for indented, names in re.findall(r"^( *)((?:[\w/.]+, )*[\w/.]+) ", plan, re.MULTILINE):
        for name in names.split(", "):
            path = (folder if indented else ROOT) / name
            assert path.exists(), path
        folder = folder if indented else path


def test_the_extras_are_those_that_the_documents_name() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{extra}`" in contributing for extra in extras)


def test_the_changelog_knows_this_version() -> None:
    assert f"## {edgelm.__version__}" in (ROOT / "CHANGELOG.md").read_text()

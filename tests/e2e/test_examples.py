import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgelm.testing import tiny_model_path

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
STAYS_ALIVE = {"fastapi_app", "tk_window"}  # test_example_apps.py uses them as their users do


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in STAYS_ALIVE], ids=lambda path: path.stem
)
def test_an_example_runs_and_says_something(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path), str(tiny_model_path())],
        capture_output=True, text=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "clients"))
import environments

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"

Run = Callable[..., Any]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the environments be made while other tests run."""
    if not session.config.option.collectonly:
        environments.begin(
            [name for item in session.items for mark in item.iter_markers("runtimes") for name in mark.args]
        )


@pytest.fixture
def run_in(tmp_path: Path) -> Run:
    """Run a program in an environment of its own, with JSON as its arguments; return the JSON that it prints last."""

    def run(environment: str, program: str, *arguments: Any) -> Any:
        interpreter = environments.environment(environment)
        path = PROGRAMS / program
        if path.suffix == ".mjs":  # node looks for packages beside the program
            copy = environments.ROOT / environment / program
            copy.write_text(path.read_text())
            path = copy
        variables = {name: os.environ[name] for name in ("PATH", "EDGELM_HOME") if name in os.environ}
        result = subprocess.run(
            [str(interpreter), str(path), *map(json.dumps, arguments)],
            env=variables | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "sdk")},
            cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return json.loads(result.stdout.strip().splitlines()[-1]) | {"stderr": result.stderr}

    return run

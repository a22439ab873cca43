from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import environments
from edgelm_server import EdgelmServer

PROGRAMS = Path(__file__).parent / "programs"
KEY = "key-of-the-clients"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the environments be made while other tests run."""
    if session.config.option.collectonly:
        return
    names = {marker.args[0] for item in session.items for marker in item.iter_markers("clients")}
    environments.begin(sorted(names, key=["lm-eval", "python", "node", "openai", "anthropic"].index))


@pytest.fixture(scope="session")
def smollm2_serving(smollm2_package: Path) -> Iterator[EdgelmServer]:
    """`edgelm serve` with the real model and a key."""
    with EdgelmServer((str(smollm2_package),), environment={"EDGELM_API_KEY": KEY}) as server:
        yield server


Run = Callable[[str], Any]


@pytest.fixture
def run(request: pytest.FixtureRequest, smollm2_serving: EdgelmServer, tmp_path: Path) -> Run:
    """Run a client's program in the client's environment; return the JSON that it prints."""
    (name,) = next(request.node.iter_markers("clients")).args

    def run_program(program: str) -> Any:
        interpreter = environments.environment(name)
        path = PROGRAMS / program
        if path.suffix == ".mjs":  # node looks for packages beside the program
            copy = environments.ROOT / name / program
            copy.write_text(path.read_text())
            path = copy
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "BASE_URL": smollm2_serving.url,
            "OPENAI_BASE_URL": f"{smollm2_serving.url}/v1",
            "OPENAI_API_KEY": KEY,
            "ANTHROPIC_BASE_URL": smollm2_serving.url,
            "ANTHROPIC_API_KEY": KEY,
            "MODEL": "smollm2-135m-instruct",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        }
        result = subprocess.run(
            [str(interpreter), str(path)], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=400,
            check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{''.join(smollm2_serving.log[-20:])}"
        return json.loads(result.stdout.strip().splitlines()[-1])

    return run_program

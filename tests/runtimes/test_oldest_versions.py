"""The oldest versions that pyproject.toml allows: tests of what each of them does, in an environment of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "clients"))
import environments

from edgelm.testing import tiny_model_path

HAVE_NUMPY = sys.version_info < (3, 13)
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.runtimes("oldest") if HAVE_NUMPY else pytest.mark.skip("numpy 1.26 is not for this Python"),
]

TESTS = (
    "sdk/test_adapter_files.py",  # onnxruntime, numpy
    "sdk/test_cli_config.py",  # click
    "sdk/test_cli_group.py",
    "sdk/test_markdown_blocks.py",  # rich
    "sdk/test_tokenizer.py",  # tokenizers
    "sdk/test_tool_parameters.py",  # llguidance
    "server/test_openai_chat.py",  # starlette, uvicorn
    "server/test_hostile_requests.py::test_metrics_count_what_was_refused",
    "trust/test_verify.py",  # model-signing, pyopenssl
)


def run(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python in the environment of the oldest versions."""
    python = environments.environment("oldest")
    variables = {name: os.environ[name] for name in ("PATH", "EDGELM_HOME") if name in os.environ}
    return subprocess.run(
        [python, *arguments],
        cwd=environments.PROJECT, env=variables | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_oldest_versions_that_are_allowed_do_what_they_are_for(tmp_path: Path) -> None:
    tests = [Path(__file__).parents[1] / name for name in TESTS]
    options = ("-p", "no:cacheprovider", "-n", "0", "--basetemp", tmp_path / "pytest")
    result = run(tmp_path, "-m", "pytest", *options, *tests)
    assert result.returncode == 0, result.stdout[-5000:]
    assert "passed" in result.stdout


@pytest.mark.parametrize("precision", ["bf16", "int4"])
def test_the_oldest_exporter_writes_its_types(precision: str, tmp_path: Path) -> None:
    command = ("-m", "edgelm", "quantize", tiny_model_path(), "--precision", precision, "-o", tmp_path / "package")
    result = run(tmp_path, *command)
    assert result.returncode == 0, result.stderr  # onnx, ml_dtypes

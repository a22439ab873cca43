"""The oldest versions that pyproject.toml allows: tests of what each of them does, in an environment of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "server" / "clients"))
import environments
from make_tiny_model import CONFIG, make_checkpoint

from edgelm.testing import tiny_model_path
from edgelm_export.exporter import export_package
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

HAVE_NUMPY = sys.version_info < (3, 13)
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.runtimes("oldest") if HAVE_NUMPY else pytest.mark.skip("numpy 1.26 is not for this Python"),
]

TESTS = (
    "sdk/package/test_adapter_files.py",  # onnxruntime, numpy
    "sdk/cli/test_cli_config.py",  # click
    "sdk/cli/test_cli_group.py::test_help_and_lists_import_nothing_heavy",
    "sdk/cli/test_completion.py::test_shells_complete_commands_options_and_models",
    "sdk/cli/test_markdown_blocks.py",  # rich
    "sdk/text/test_tokenizer.py",  # tokenizers
    "sdk/structure/test_tool_parameters.py",  # llguidance
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


def test_the_oldest_onnxruntime_says_that_it_is_too_old_for_experts_of_four_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, num_hidden_layers=3, num_experts=4, num_experts_per_tok=2, hidden_size=64)
    checkpoint = HuggingFaceCheckpoint(make_checkpoint(tmp_path / "checkpoint", config))
    export_package(checkpoint, tmp_path / "package", "int4", name="experts")
    result = run(tmp_path, "-m", "edgelm", "run", tmp_path / "package", "Hello")
    assert result.returncode == 1
    assert "ONNX Runtime 1.28.0 is too old for " in result.stderr
    assert 'pip install --upgrade "edgelm[cpu]"' in result.stderr

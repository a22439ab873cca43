"""The files of a model of the benchmark, all made of the same weights, once for each state of exporter and peers."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import click
import gguf

from contestants import CONTESTANTS
from edgelm.architecture.quantization_recipe import PRECISIONS, Precision
from edgelm.library import sources
from edgelm.library.library import Library
from edgelm_export.exporter import export_package
from edgelm_export.importer import import_checkpoint
from edgelm_export.sources.sources import open_checkpoint
from gguf_twin import write_twin
from k_quants import quantize_gguf
from machine import versions
from models import MODELS, SMOLLM2, Model
from random_llama import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "bench"
PREFILL_MODEL = "edgelm-int8-prefill"
PEERS = ("llama-cpp-python", "onnxruntime-genai")
_GENAI_BLOCK_SIZE = 32


def prepare_models(*names: str, model: Model = MODELS[SMOLLM2]) -> Path:
    """Make what is missing of a model's checkpoint and of what these contestants load, and return the folder of all."""
    folder = _checkpoint(model).parent
    contestants = [contestant for contestant in CONTESTANTS if contestant.name in names]
    wanted = {contestant.model for contestant in contestants} | {contestant.scored_model for contestant in contestants}
    for name, make in _MAKERS.items():
        if name in wanted:
            once(folder / name, partial(make, model))
    return folder


def _checkpoint(model: Model) -> Path:
    state = CACHE / f"models-{exporter_state()}"
    if not state.exists():
        for outdated in CACHE.glob("models-*"):
            shutil.rmtree(outdated)
    (state / model.name).mkdir(parents=True, exist_ok=True)
    return once(state / model.name / "checkpoint", partial(_make_checkpoint, model))


def _make_checkpoint(model: Model, target: Path) -> None:
    if model.source is None:
        write_checkpoint(target, _checkpoint(MODELS[SMOLLM2]))
    else:
        import_checkpoint(gguf_file(model), target)


def gguf_file(model: Model = MODELS[SMOLLM2]) -> Path:
    """Return the file that llama.cpp's are made of: fetched once or, of random weights, written once."""
    if model.source is None:
        checkpoint = _checkpoint(model)
        return once(checkpoint.with_name("float32.gguf"), partial(write_twin, gguf_file(), checkpoint))
    library = Library(ROOT / ".cache" / "edgelm")  # the tests keep models there too
    with library.lock(model.source):
        return sources.fetch(sources.resolve(model.source), library, model.source)


def size_on_disk(model: Path) -> int:
    """Count the bytes that the weights and the graph take, without the tokenizer, which a GGUF file has in its head."""
    if model.is_file():
        return int(model.stat().st_size - gguf.GGUFReader(model).data_offset)
    return sum(path.stat().st_size for path in model.glob("*.onnx*"))


@cache
def exporter_state() -> str:
    """Return a digest of all that decides about what is made: the exporter's code, and which peers are installed."""
    digest, installed = hashlib.sha256(), dict(versions())
    for path in sorted((ROOT / "export").rglob("*.py")):
        digest.update(path.read_bytes())
    for package in PEERS:
        digest.update(f"{package}=={installed.get(package)}".encode())
    return digest.hexdigest()[:12]


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Let `make` make a file or folder that is not there, under another name until it is whole; return it."""
    if target.exists():
        return target
    click.echo(f"Making {target.name} ...", err=True)
    unfinished = target.with_name(f"unfinished-{target.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    make(unfinished)
    os.replace(unfinished, target)
    return target


def _export(precision: Precision, label: str, model: Model, target: Path) -> None:
    with open_checkpoint(_checkpoint(model)) as source:
        export_package(source, target, precision, name=f"{model.source or model.name}-{label}")


def _keep(model: Model, target: Path) -> None:
    with open_checkpoint(gguf_file(model)) as source:
        export_package(source, target, "keep", name=f"{model.source}-keep")


def _link_source(model: Model, target: Path) -> None:
    target.symlink_to(gguf_file(model).resolve())


def genai_command(
    checkpoint: Path, target: Path, precision: str, *, last_logits_only: bool = True, python: str = sys.executable
) -> list[str]:
    """Call the builder that onnxruntime-genai ships; `python` is the one that it is installed in.

    Its default computes the head for every token of a prompt; timed is the faster graph, with the last one's alone.
    """
    command = [python, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(target)]
    command += ["-p", precision, "-e", "cpu", "-c", str(CACHE / "genai-builder")]
    return [*command, "--extra_options", f"block_size={_GENAI_BLOCK_SIZE}", f"prune_lm_head={last_logits_only}".lower()]


def _build_genai(precision: str, last_logits_only: bool, model: Model, target: Path) -> None:
    run_builder(genai_command(_checkpoint(model), target, precision, last_logits_only=last_logits_only), target)


def run_builder(command: list[str], target: Path) -> None:
    """Run a `genai_command`.

    Raises:
        click.ClickException: it fails, with what it says.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    place = target.parent  # not here, where our modules would hide its own
    result = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=place, check=False)
    if result.returncode:
        raise click.ClickException(f"The builder of onnxruntime-genai failed:\n{result.stderr[-2000:]}")


def _quantize_gguf(kind: str, model: Model, target: Path) -> None:
    quantize_gguf(gguf_file(model), target, kind)


# What makes the file or folder of that name, beside the model's checkpoint.
_MAKERS: dict[str, Callable[[Model, Path], None]] = {
    **{f"edgelm-{name}": partial(_export, PRECISIONS[name], name) for name in ("fp32", "int8", "int8-wide", "int4")},
    "edgelm-keep": _keep,
    "source.gguf": _link_source,
    PREFILL_MODEL: partial(_export, PRECISIONS["int8"].with_prefill_graph(), "int8-prefill"),
    **{
        f"edgelm-{name}-long": partial(_export, PRECISIONS[name].with_prefill_graph().with_int8_cache(), f"{name}-long")
        for name in ("int8", "int8-wide", "int4")
    },
    **{f"genai-{precision}": partial(_build_genai, precision, True) for precision in ("int8", "int4")},
    **{f"genai-{precision}-all-logits": partial(_build_genai, precision, False) for precision in ("int8", "int4")},
    **{f"llama-{kind.lower()}.gguf": partial(_quantize_gguf, kind) for kind in ("Q8_0", "Q4_0")},
}

"""The most quality per byte: edgelm's recipes beside llama.cpp's k-quants and onnxruntime-genai's k_quant mixes.

    python benchmarks/quality.py ckpt/ model.gguf docs/results/quality --title SmolLM2-135M-Instruct

CKPT is a checkpoint folder, GGUF the file that it came from, or one with its weights (gguf_twin.py). Every contestant
reads the same token ids, and its logits are compared with those of the checkpoint in fp32. What is done is not done
again, until the exporter changes or a peer: a second call with the same --work goes on where the first was stopped, and
removes what was made before such a change. The page keeps the other models that were written to it.

Training makes a model worse on what it was not trained for, and a quantizer that takes the training back looks better
there than fp32. --held-out adds a text of the training's own kind.

onnxruntime-genai's builder takes Gemma 3 beside transformers 4 alone, which its releases after 0.15 do not run with:

    python -m venv builder
    builder/bin/pip install onnxruntime-genai==0.15.2 "transformers<5" torch onnx onnx-ir
    python benchmarks/quality.py gemma3/ model.gguf docs/results/quality --title "Gemma 3" --builder builder/bin/python

That release makes 4 bits of int8 with k_quant, byte for byte its int4: leave it out of --only.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np

from contestants import Contestant
from edgelm.architecture.quantization_recipe import Precision, precision_named
from edgelm.architecture.quantization_scheme import KEEP
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.exporter import export_package
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.sources.sources import open_checkpoint
from edgelm_export.verification.verification_text import verification_text
from edgelm_training.evaluation.held_out import held_out_documents
from k_quants import Importance, importance_matrix, quantize_gguf
from machine import command, describe_machine
from prepare import CACHE, exporter_state, genai_command, once, run_builder, size_on_disk
from quality_goals import HELD_OUT
from quality_recipes import RECIPES
from quality_report import write_report
from worker import Worker
from workload import FULL, PERPLEXITY_TOKENS, read_text

KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "Q3_K_M")
# onnxruntime-genai's builder: precision, and its algo_config.
BUILDS = {
    "int8 k_quant": ("int8", "k_quant"),
    "int4 k_quant": ("int4", "k_quant"),
    "int4 k_quant_last": ("int4", "k_quant_last"),
    "int4 k_quant_mixed": ("int4", "k_quant_mixed"),
}
SOURCE = "edgelm-fp32"
_BUILDER = ("onnxruntime-genai", "onnxruntime", "transformers", "torch")
# What text is scored, and in windows of how many tokens; neither is in the text that quantizers are calibrated on.
REFERENCE, PROSE = "Python's language reference", "the export's verification text"
_REFERENCE_WINDOWS, _PROSE_WINDOWS, _PROSE_TOKENS = 2, 2, 512
_HELD_OUT_WINDOWS = 8


@dataclass(frozen=True, kw_only=True)
class Models:
    """Where everything is made, each once, in a folder of its own."""

    checkpoint: Path
    gguf: Path
    work: Path
    builder: str = sys.executable  # the Python that onnxruntime-genai's builder is installed in

    def contestants(self) -> list[tuple[Contestant, Callable[[Path], None]]]:
        """List who is compared, and how each one's model is made; the source comes first."""
        ours = [
            (_row("edgelm", label, "edgelm_engine"), lambda target, recipe=recipe: self._export(target, recipe))
            for label, recipe in {"fp32": precision_named("fp32"), **RECIPES}.items()
        ]
        kept = (_row("edgelm", "keep, of the file itself", "edgelm_engine"), self._keep)
        itself = (_row("llama", "the file itself", "llama_cpp_engine"), self._link_gguf)
        theirs = [
            (_row("llama", kind, "llama_cpp_engine"), lambda target, kind=kind: self._quantize_gguf(target, kind))
            for kind in KINDS
        ]
        built = [
            (_row("genai", label, "genai_engine"), lambda target, build=build: self._build_genai(target, *build))
            for label, build in BUILDS.items()
        ]
        return [*ours, kept, itself, *theirs, *built]

    @cached_property
    def importance(self) -> Importance:
        """llama.cpp's importance matrix, which takes a minute."""
        kept = self.work / "importance.npz"
        if not kept.exists():
            click.echo("Reading the calibration text for the importance matrix ...", err=True)
            with open_checkpoint(self.checkpoint) as source:
                np.savez(kept, **importance_matrix(source))  # type: ignore[arg-type]
        with np.load(kept) as stored:
            return {name: stored[name] for name in stored.files}

    def _export(self, target: Path, recipe: Precision) -> None:
        keeps = any(rule.scheme == KEEP for rule in recipe.rules)
        with open_checkpoint(self.gguf if keeps else self.checkpoint) as source:
            export_package(source, target, recipe, calibration=CalibrationOptions())

    def _keep(self, target: Path) -> None:
        with open_checkpoint(self.gguf) as source:
            export_package(source, target, "keep")

    def _link_gguf(self, target: Path) -> None:
        target.unlink(missing_ok=True)
        target.symlink_to(self.gguf.resolve())

    def _quantize_gguf(self, target: Path, kind: str) -> None:
        quantize_gguf(self.gguf, target, kind, self.importance)

    def _build_genai(self, target: Path, precision: str, algorithm: str) -> None:
        source = self.checkpoint.resolve()  # the builder works elsewhere
        build = genai_command(source, target, precision, last_logits_only=False, python=self.builder)
        run_builder([*build, f"algo_config={algorithm}"], target)


def _row(runtime: str, label: str, engine: str) -> Contestant:
    name = f"{runtime}-{label.lower().translate(str.maketrans(' ,;', '---'))}"
    title = {"edgelm": "edgelm", "llama": "llama.cpp", "genai": "onnxruntime-genai"}[runtime]
    return Contestant(name=name, label=f"{title} {label}", engine=engine, model=name, baseline=None)


class Comparison:
    """Score contestants on the same windows of token ids, which are in `windows` by text."""

    def __init__(self, models: Models, held_out: Path | None) -> None:
        self._models = models
        tokenizer = Tokenizer.load(models.checkpoint)
        prose = tokenizer.encode(verification_text())[: _PROSE_WINDOWS * _PROSE_TOKENS]
        windows = {} if held_out is None else {HELD_OUT: _held_out_windows(held_out, tokenizer, models.checkpoint)}
        windows[PROSE] = [prose[start : start + _PROSE_TOKENS] for start in range(0, len(prose), _PROSE_TOKENS)]
        # A window is no longer for the tokens that some authors put before every text.
        begun = {text: [[*tokenizer.leading_ids, *ids][: len(ids)] for ids in rows] for text, rows in windows.items()}
        # Its windows have those tokens already.
        begun[REFERENCE] = read_text(models.checkpoint, FULL).windows[:_REFERENCE_WINDOWS]
        self.windows = {text: begun[text] for text in (HELD_OUT, REFERENCE, PROSE) if text in begun}

    @property
    def tokens(self) -> dict[str, int]:
        """Count the tokens of each text that have a probability."""
        return {text: sum(len(ids) - 1 for ids in windows) for text, windows in self.windows.items()}

    def score(self, contestant: Contestant, make: Callable[[Path], None]) -> dict[str, Any]:
        """Make a contestant's model, if it is not there, and return its size and its figures by text."""
        model = once(self._models.work / contestant.model, make)
        click.echo(f"Scoring {contestant.label} ...", err=True)
        with Worker(contestant, model, huge_pages=False, log=CACHE / "logs" / f"{contestant.name}.log") as worker:
            if contestant.name == SOURCE:
                for text, number, ids in self._numbered():
                    worker.ask("keep_logits", ids=ids, path=str(self._logits(text, number)))
            answers: dict[str, list[dict[str, float]]] = {}
            for text, number, ids in self._numbered():
                answer = worker.ask("compare", ids=ids, source=str(self._logits(text, number)))
                answers.setdefault(text, []).append({**answer, "tokens": len(ids)})
        return {
            "label": contestant.label,
            "bytes": size_on_disk(model),
            "texts": {text: _figures(rows) for text, rows in answers.items()},
        }

    def _numbered(self) -> list[tuple[str, int, list[int]]]:
        return [(text, number, ids) for text, windows in self.windows.items() for number, ids in enumerate(windows)]

    def _logits(self, text: str, number: int) -> Path:
        return self._models.work / f"logits-{list(self.windows).index(text)}-{number}.npy"


def folder_of_state(work: Path) -> Path:
    """Return the folder of what this exporter and these peers make; those of others, of gigabytes, are removed."""
    state = work / exporter_state()
    for folder in work.glob("*"):
        if folder.is_dir() and re.fullmatch(r"[0-9a-f]{12}", folder.name) and folder != state:
            shutil.rmtree(folder)
    state.mkdir(parents=True, exist_ok=True)
    return state


def _held_out_windows(held_out: Path, tokenizer: Tokenizer, model: Path) -> list[list[int]]:
    """Cut windows out of the documents, as far from each other as their tokens allow."""
    ids = [id_ for document in held_out_documents((str(held_out),), tokenizer, model) for id_ in document.ids]
    apart = len(ids) // _HELD_OUT_WINDOWS
    return [ids[start : start + PERPLEXITY_TOKENS] for start in range(0, apart * _HELD_OUT_WINDOWS, apart)]


def _figures(windows: list[dict[str, float]]) -> dict[str, float]:
    tokens = sum(row["tokens"] for row in windows)
    scored = tokens - len(windows)

    def mean(key: str) -> float:
        return sum(row[key] * row["tokens"] for row in windows) / tokens

    return {
        "perplexity": math.exp(-sum(row["log_likelihood"] for row in windows) / scored),
        "divergence": mean("divergence"),
        "top1_agreement": mean("top1_agreement"),
    }


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, path_type=Path))
@click.argument("gguf", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--title", required=True, help="The model, in the report's words.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="A folder for what is made of this model [default: in .cache/]."
)
@click.option("--only", help="Only contestants whose name has this regular expression, and the source.")
@click.option(
    "--held-out",
    type=click.Path(exists=True, path_type=Path),
    help="Text of the kind that the model was trained on: a file, or shards, of which the validation split is taken.",
)
@click.option("--builder", help="The Python that has onnxruntime-genai's builder [default: this one].")
def main(
    checkpoint: Path,
    gguf: Path,
    target: Path,
    title: str,
    work: Path | None,
    only: str | None,
    held_out: Path | None,
    builder: str | None,
) -> None:
    """Compare what becomes of CHECKPOINT, and write it to TARGET.json, TARGET.md and a picture."""
    # Scores of another exporter, or of other peers, would stand under this commit. The workers run elsewhere.
    work = folder_of_state((work or CACHE / "quality" / checkpoint.name).resolve())
    models = Models(checkpoint=checkpoint, gguf=gguf, work=work, builder=os.path.abspath(builder or sys.executable))
    built_by = {} if builder is None else {"builder": _versions(builder)}
    comparison = Comparison(models, held_out)
    kept = work / "scores.json"
    scores = {name: row for name, row in _read(kept).items() if row["texts"].keys() == comparison.tokens.keys()}
    for contestant, make in models.contestants():
        wanted = only is None or contestant.name == SOURCE or re.search(only, contestant.name)
        if contestant.name in scores or not wanted:
            continue
        scores[contestant.name] = comparison.score(contestant, make)
        kept.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        click.echo(json.dumps(scores[contestant.name]), err=True)
    names = [contestant.name for contestant, _ in models.contestants() if contestant.name in scores]
    result = {
        "command": command(),
        "machine": describe_machine(),
        **built_by,
        "tokens": comparison.tokens,
        "source": SOURCE,
        "contestants": {name: scores[name] for name in names},
    }
    write_report({**_read(target.with_name(f"{target.name}.json")), title: result}, target)
    click.echo(f"Written: {target}.md, .json and pictures", err=True)


def _versions(python: str) -> str:
    """Name what builds onnxruntime-genai's packages there."""
    program = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {_BUILDER}))"
    result = subprocess.run([python, "-c", program], capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        raise click.ClickException(f"--builder is {python}, which lacks one of {', '.join(_BUILDER)}:\n{result.stderr}")
    return result.stdout.strip()


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


if __name__ == "__main__":
    main()

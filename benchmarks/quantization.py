"""Compare recipes of quantization: python benchmarks/quantization.py > quantization.md

Each row exports one checkpoint by another recipe, and computes its perplexity on 4 x 1024 tokens of Python's language
reference. Rows with gptq run the source on the bundled calibration text. About 40 minutes for all.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

import edgelm
from edgelm.architecture.quantization_recipe import PRECISIONS
from edgelm_export.exporter import export_package
from edgelm_export.mixed import size_of_graph
from edgelm_export.quantize.calibration_text import CalibrationOptions
from edgelm_export.sources.sources import open_checkpoint
from machine import command, describe_machine
from prepare import prepare_models
from quality_recipes import recipe
from workload import FULL, read_text

_HEAD = (r"embed_tokens|lm_head", "int8-block64")
RECIPES = {
    "fp32": PRECISIONS["fp32"],
    "fp16": PRECISIONS["fp16"],
    "bf16": PRECISIONS["bf16"],
    "8 bits, block 64": recipe("int8-block64"),
    "8 bits, block 32": recipe("int8-block32"),
    "8 bits, block 64, smoothed (`int8`)": PRECISIONS["int8"],
    "8 bits, block 128, smoothed (`int8-wide`)": dataclasses.replace(PRECISIONS["int8-wide"], fallback=None),
    "4 bits, block 64, rounded; head in 8": recipe("int4-block64-rounded", _HEAD),
    "4 bits, block 64, searched; head in 8": recipe("int4-block64", _HEAD),
    "4 bits, block 64, hqq; head in 8": recipe("int4-block64-hqq", _HEAD),
    "4 bits, block 64, asymmetric; head in 8": recipe("int4-block64-asymmetric", _HEAD),
    "4 bits, block 32, asymmetric; head in 8": recipe("int4-block32-asymmetric", _HEAD),
    "4 bits, block 32, asymmetric, awq; head in 8": recipe("int4-block32-asymmetric", _HEAD, transforms=("awq",)),
    "head, first and last layer in 8 (`int4`)": PRECISIONS["int4"],
    "the same, gptq (`int4 --calibrate`)": PRECISIONS["int4"].calibrated(),
    "4 bits, block 32, asymmetric, gptq; head in 8": recipe("int4-block32-asymmetric-gptq", _HEAD),
    "`int2`": PRECISIONS["int2"],
}


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A checkpoint [default: SmolLM2-135M-Instruct].")
@click.option("--only", help="Only the rows whose label holds this text.")
def main(checkpoint: Path | None, only: str | None) -> None:
    """Print the table as Markdown."""
    folder = checkpoint or prepare_models() / "checkpoint"
    windows = read_text(folder, FULL).windows
    machine = describe_machine()
    click.echo(f"`{command()}`, {machine['date']}, commit {machine['commit']}, on")
    click.echo(f"{machine['cpu']}, edgelm {edgelm.__version__}, onnxruntime {machine['packages']['onnxruntime']}.\n")
    click.echo("| recipe | MB | perplexity | over fp32 | KL divergence, nats |\n|---|---|---|---|---|")
    reference = None
    with tempfile.TemporaryDirectory() as temporary:
        for label, precision in RECIPES.items():
            if only is not None and only not in label and label != "fp32":
                continue
            click.echo(label, err=True)
            with open_checkpoint(folder) as source:
                manifest = export_package(
                    source, Path(temporary) / "package", precision, calibration=CalibrationOptions()
                )
            model = edgelm.load(Path(temporary) / "package")
            perplexity = math.exp(np.mean([math.log(model.score(ids).perplexity) for ids in windows]))
            reference = reference or perplexity
            size = size_of_graph(manifest) / 1e6
            assert manifest.quality is not None
            divergence = manifest.quality.mean_kl_divergence
            row = f"| {label} | {size:.0f} | {perplexity:.2f} | {perplexity / reference - 1:+.1%} | {divergence:.4f} |"
            click.echo(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

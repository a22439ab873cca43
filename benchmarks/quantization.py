"""Compare recipes of quantization: python benchmarks/quantization.py > docs/results/quantization.md (about 10 minutes)

Each row exports SmolLM2-135M-Instruct by another recipe, and computes its perplexity on 4 x 1024 tokens of Python's
language reference.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import edgelm
from edgelm_export.exporter import export_package
from edgelm_export.quantize import PRECISIONS, SCHEMES, Precision, Rule
from edgelm_export.quantize.int4 import quantize_int4
from edgelm_export.quantize.int8 import quantize_int8
from edgelm_export.quantize.packed import PackedWeight, in_blocks, pack
from edgelm_export.sources import open_checkpoint
from machine import describe_machine
from prepare import prepare_models
from workload import FULL, read_text


def round_int4(weight_NK: NDArray[np.float32]) -> PackedWeight:
    """Round to nearest without a search: what quantize_int4 is to be better than."""
    blocks = in_blocks(weight_NK, 64)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    scales = np.where(largest == 0, np.float32(1), largest / np.float32(-8))
    values = np.clip(np.rint(blocks / scales[..., None]), -8, 7) + 8
    return pack(values.astype(np.uint8), scales, None, bits=4, columns=weight_NK.shape[1])


SCHEMES.update(
    {
        "int4-block64-rounded": round_int4,
        "int4-block32": lambda weight: quantize_int4(weight, 32),
        "int8-block32": lambda weight: quantize_int8(weight, 32),
        "int8-block256": lambda weight: quantize_int8(weight, 256),
    }
)
_HEAD = r"embed_tokens|lm_head"


def _recipe(rest: str, *in_8_bits: str) -> Precision:
    kept = tuple(Rule(pattern=pattern, scheme="int8-block64") for pattern in in_8_bits)
    return Precision(rules=(*kept, Rule(pattern=".", scheme=rest)), perplexity_bound=math.inf)


RECIPES = {
    "fp32": PRECISIONS["fp32"],
    "8 bits, block 64 (`int8`)": PRECISIONS["int8"],
    "8 bits, block 32": _recipe("int8-block32"),
    "8 bits, block 64, down_proj in block 256": Precision(
        rules=(Rule(pattern="down_proj", scheme="int8-block256"), Rule(pattern=".", scheme="int8-block64")),
        perplexity_bound=math.inf,
    ),
    "4 bits, block 64, rounded; head in 8": _recipe("int4-block64-rounded", _HEAD),
    "4 bits, block 64, searched; head in 8": _recipe("int4-block64", _HEAD),
    "4 bits, block 32, searched; head in 8": _recipe("int4-block32", _HEAD),
    "head and layer 0 in 8": _recipe("int4-block64", _HEAD, r"layers\.0\."),
    "head, first and last layer in 8 (`int4`)": PRECISIONS["int4"],
    "head, two first and two last layers in 8": _recipe("int4-block64", _HEAD, r"layers\.(0|1|28|29)\."),
    "head and q, k, v in 8": _recipe("int4-block64", _HEAD, "[qkv]_proj"),
    "head and down_proj in 8": _recipe("int4-block64", _HEAD, "down_proj"),
}


@click.command()
def main() -> None:
    """Print the table as Markdown."""
    checkpoint_folder = prepare_models() / "checkpoint"
    windows = read_text(checkpoint_folder, FULL).windows
    machine = describe_machine()
    click.echo("# What quantization costs\n")
    click.echo(f"`python benchmarks/quantization.py`, {machine['date']}, commit {machine['commit']}, on")
    click.echo(f"{machine['cpu']}, edgelm {edgelm.__version__}, onnxruntime {machine['packages']['onnxruntime']}.\n")
    click.echo(
        "SmolLM2-135M-Instruct, whose weights come from a Q4_1 file: every 4-bit row rounds a second time. Perplexity"
    )
    click.echo(
        "on 4 x 1024 tokens of Python's language reference; KL divergence on the export's own text. Small gaps on one"
    )
    click.echo("text prove nothing.\n")
    click.echo("| recipe | MB | perplexity | over fp32 | KL divergence, nats |\n|---|---|---|---|---|")
    reference = None
    with tempfile.TemporaryDirectory() as temporary:
        for label, precision in RECIPES.items():
            click.echo(label, err=True)
            PRECISIONS["benchmark"] = precision
            with open_checkpoint(checkpoint_folder) as checkpoint:
                manifest = export_package(checkpoint, Path(temporary) / "package", "benchmark")
            model = edgelm.load(Path(temporary) / "package")
            perplexity = math.exp(np.mean([math.log(model.score(ids).perplexity) for ids in windows]))
            reference = reference or perplexity
            size = sum(entry.size for entry in manifest.files if entry.path.startswith("model.onnx")) / 1e6
            assert manifest.quality is not None
            divergence = manifest.quality.mean_kl_divergence
            row = f"| {label} | {size:.0f} | {perplexity:.2f} | {perplexity / reference - 1:+.1%} | {divergence:.4f} |"
            click.echo(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

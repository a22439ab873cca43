"""The command `edgelm export`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from edgelm.cli.output import is_terminal
from edgelm.cli.progress import progress_line
from edgelm.library import Library
from edgelm.manifest import Manifest
from edgelm_export.exporter import DEFAULT_PRECISION, export_package
from edgelm_export.quantize import PRECISIONS
from edgelm_export.sources import open_checkpoint

EXAMPLES = """
\b
Examples:
  edgelm export smollm2-135m-instruct                       a source of the library, to the library, in int8
  edgelm export smollm2-135m-instruct --precision int4      beside it, as smollm2-135m-instruct-int4
  edgelm export ckpt/ -o pkg/ --precision fp32              a checkpoint folder to a folder
  edgelm export model.gguf -o pkg/ --precision keep         a GGUF file, on its own quantization grid
"""


@click.command(epilog=EXAMPLES)
@click.argument("source")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The package folder [default: in the library].")
@click.option(
    "--precision", type=click.Choice(list(PRECISIONS)), default=DEFAULT_PRECISION, show_default=True,
    help="How the weights are stored; keep: on the grid that a GGUF file has.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def export(source: str, output: Path | None, precision: str, as_json: bool) -> None:
    """Export a checkpoint to a model package, and check it against its source.

    SOURCE is a checkpoint folder, a Hugging Face folder, a GGUF file, or the name of a source in the library. The
    package appears when it is complete and checked; until then an older one of the same name stays.
    """
    library = Library()
    path = library.find_source(source)
    if output is None:
        name = _package_name(path, library)
        output = library.package_path(name if precision == DEFAULT_PRECISION else f"{name}-{precision}")
    with open_checkpoint(path) as checkpoint, progress_line() as progress:
        manifest = export_package(checkpoint, output, precision, progress=progress)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(manifest), indent=2))
    else:
        _print_figures(manifest, output)


def _package_name(source: Path, library: Library) -> str:
    """Return a source's name in the library, or that of any other file or folder: `.2-1B` of a name is no suffix."""
    sources = library.root / "sources"
    if sources in source.parents:
        return source.relative_to(sources).parts[0]
    return source.resolve().name.lower().removesuffix(".gguf")


def _print_figures(manifest: Manifest, output: Path) -> None:
    quality = manifest.quality
    assert quality is not None  # every export measures it
    size = sum(entry.size for entry in manifest.files) / 1e6
    rows = [
        ("package", f"{output} ({size:.0f} MB, {manifest.precision})"),
        ("perplexity", f"{quality.perplexity:.3f} (source {quality.source_perplexity:.3f}, {quality.tokens} tokens)"),
        ("KL divergence", f"{quality.mean_kl_divergence:.5f} nats per token"),
        ("logits", f"largest difference {quality.max_logit_difference:.2g}"),
        ("most likely token", f"the same at {quality.top1_agreement:.1%} of the positions"),
        ("greedy tokens", f"the source's own for {quality.greedy_agreement} of {quality.greedy_tokens}"),
    ]
    for label, value in rows:
        click.echo(f"{label:>18}  {value}")
    for note in manifest.notes:
        click.echo(f"{'note':>18}  {note}")
    if is_terminal(sys.stderr):
        click.echo(f"Chat with it: edgelm chat {output}", err=True)

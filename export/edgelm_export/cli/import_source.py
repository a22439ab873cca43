"""The command `edgelm import`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgelm.cli.generation_options import complete_source
from edgelm.cli.output import megabytes, print_json, print_rows
from edgelm.cli.progress import progress_line
from edgelm.library.library import Library
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.importer import write_checkpoint
from edgelm_export.sources.sources import open_checkpoint


@click.command("import")
@click.argument("source", shell_complete=complete_source)
@click.option(
    "-o", "--output", metavar="FOLDER", type=click.Path(path_type=Path), required=True,
    help="The checkpoint folder; an older one there is replaced.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def import_(source: str, output: Path, as_json: bool) -> None:
    """Make a checkpoint folder of a downloaded model, to train it further or to export it.

    SOURCE is a GGUF file (of a model in several, any of them), a Hugging Face folder with safetensors, a package, or
    the name of a source in the library (./NAME where a folder here has it too). The folder also loads in transformers.
    It appears when it is complete; until then an older one stays.

    \b
    Examples:
      edgelm import model.gguf -o ckpt/                a GGUF file; quantized weights become float32
      edgelm import ~/models/SmolLM2-360M -o ckpt/     a Hugging Face folder; weights keep their type
      edgelm import smollm2-135m-instruct -o ckpt/     a source that `edgelm pull` brought
    """
    with open_checkpoint(Library().find_source(source)) as checkpoint:
        with progress_line() as progress:
            notes = write_checkpoint(checkpoint, output, progress=progress)
        figures = _figures(checkpoint, output, notes)
    if as_json:
        print_json(figures)
        return
    types = ", ".join(f"{count} {name}" for name, count in figures["tensor_types"].items())
    rows = [
        ("checkpoint", f"{output} ({megabytes(figures['bytes'])})"),
        ("model", f"{figures['model_type']}, {figures['parameters'] / 1e6:.1f}M parameters"),
        ("context", f"{figures['context_length']} tokens"),
        ("source tensors", types),
        *(("note", note) for note in notes),
    ]
    print_rows(rows)


def _figures(checkpoint: Checkpoint, output: Path, notes: Sequence[str]) -> dict[str, Any]:
    config = checkpoint.config
    return {
        "folder": str(output),
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "model_type": config.model_type,
        "parameters": config.count_parameters(),
        "context_length": config.max_position_embeddings,
        "tensor_types": dict(Counter(checkpoint.stored_type(name) for name in config.tensor_shapes()).most_common()),
        "source": dict(checkpoint.source),
        "notes": list(notes),
    }

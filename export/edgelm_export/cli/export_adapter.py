"""The command `edgelm export-adapter`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from edgelm.cli.generation_options import complete_model
from edgelm.cli.output import is_terminal, megabytes, print_json, print_rows
from edgelm.library.library import Library
from edgelm.shell_word import shell_word
from edgelm_export.adapters.adapter_exporter import export_adapter

EXAMPLES = """
\b
Examples:
  edgelm export-adapter ft/ --base pkg/ -o adapter/         the best adapter of a run, for the package of its base
  edgelm export-adapter peft/ --base my-model -o adapter/   one that PEFT trained, for a package of the library
  edgelm export-adapter lora.gguf --base pkg/ -o adapter/   one that was converted for llama.cpp
  edgelm chat pkg/ --adapter adapter/
"""


@click.command("export-adapter", epilog=EXAMPLES)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option(
    "--base", required=True, shell_complete=complete_model,
    help="The package that it goes with: a folder, or a name from the library.",
)  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The folder of the adapter.")
@click.option("--json", "as_json", is_flag=True, help="Print the adapter's manifest as JSON.")
def export_adapter_(adapter: Path, base: str, output: Path, as_json: bool) -> None:
    """Export an adapter to stand beside a package.

    ADAPTER is the folder of a run of `edgelm finetune`, or of a LoRA adapter in PEFT's or mlx-lm's format, whose
    layers may have the names of the package or those of its family's published folder; or a GGUF file of one for
    llama.cpp. The package stays as it is; `run`, `chat` and `serve` take the adapter beside it (--adapter).
    """
    folder = Library().find(base)
    manifest = export_adapter(adapter, folder, output)
    if as_json:
        print_json(dataclasses.asdict(manifest))
        return
    rows = [
        ("adapter", f"{output} ({megabytes(manifest.file.size)}, rank {manifest.rank})"),
        ("beside", f"{folder} ({manifest.base})"),
        ("changes", ", ".join(manifest.target_modules)),
        *(("note", note) for note in manifest.notes),
    ]
    print_rows(rows)
    if is_terminal(sys.stderr):
        command = f"edgelm chat {shell_word(folder)} --adapter {shell_word(output)}"
        click.echo(f"Chat with it: {command}", err=True)

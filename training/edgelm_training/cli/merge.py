"""The command `edgelm merge`."""

from __future__ import annotations

from pathlib import Path

import click

from edgelm.cli.output import print_json
from edgelm.cli.progress import status
from edgelm.counted import counted

EXAMPLES = """
\b
Examples:
  edgelm merge ft/ -o merged/                              the best adapter of a run, into the model that it began with
  edgelm merge ft/checkpoints/step-00000100 -o merged/     another one
  edgelm merge adapter/ --base ckpt/ -o merged/            an adapter that PEFT trained elsewhere
  edgelm export merged/ -o pkg/                            the result as a package
"""


@click.command(epilog=EXAMPLES)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new checkpoint folder.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The base's checkpoint folder.  [default: as named by it]"
)
@click.option(
    "--dtype",
    type=click.Choice(("same", "fp32", "bf16", "fp16")),
    default="same",
    show_default=True,
    help="The type of the weights; same: as in the base.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def merge(adapter: Path, output: Path, base: Path | None, dtype: str, as_json: bool) -> None:
    """Merge an adapter into its base.

    ADAPTER is the folder of a run of `edgelm finetune`, or of an adapter in PEFT's or mlx-lm's format. What stands at
    the output is replaced only if it is a checkpoint folder of edgelm.
    """
    # Imported here, so that --help needs no torch.
    from edgelm_training.merge import merge_adapter

    with status("Merging"):
        merged = merge_adapter(adapter, output, base=base, dtype=dtype)
    if as_json:
        facts = {
            "output": str(merged.output),
            "adapter": str(merged.adapter),
            "base": str(merged.base),
            "layers": merged.layers,
            "base_checked": merged.checked,
            "notes": merged.notes,
        }
        print_json(facts)
        return
    click.echo(f"{merged.output}  {merged.adapter} in {counted(merged.layers, 'layer')} of {merged.base}")
    for note in merged.notes:
        click.echo(note, err=True)
    if not merged.checked:
        click.echo("The adapter does not say which weights it was trained on; its shapes fit these.", err=True)

"""`edgelm du`: what takes room on the disk."""

from __future__ import annotations

import dataclasses
import shutil

import click

from edgelm.cli.output import megabytes, print_json, print_table
from edgelm.library.disk_use import disk_use
from edgelm.library.library import Library


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def du(as_json: bool) -> None:
    """Show what models, sources, sessions and caches take on the disk.

    A source is what a package was made from; it is needed only to make another. A download is unfinished. A cache is
    made again when it is missing. A leftover is of a program that was killed.

    \b
    Examples:
      edgelm du
      edgelm du --json | jq 'map(.size) | add'

    \b
    To make room:
      edgelm rm NAME                    a model, its source, its download
      edgelm rm NAME --source-only      the source alone; the package stays
      edgelm cache clear                what was computed for sessions
      edgelm cache clear --calibration  what calibrations that were stopped have left
    """
    library = Library()
    uses = disk_use(library)
    if as_json:
        facts = [dataclasses.asdict(use) | {"path": str(use.path)} for use in uses]
        print_json(facts)
        return
    if not uses:
        click.echo(f"There is nothing in {library.root}.", err=True)
        return
    rows: list[tuple[str, str, str]] = [(use.kind, use.name, megabytes(use.size)) for use in uses]
    rows.append(("", "together", megabytes(sum(use.size for use in uses))))
    print_table(["KIND", "NAME", "SIZE"], rows)
    free = shutil.disk_usage(library.root if library.root.exists() else uses[0].path).free
    click.echo(f"{library.root}: {megabytes(free)} are free on its disk.", err=True)

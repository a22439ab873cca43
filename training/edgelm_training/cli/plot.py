"""The command `edgelm plot`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from edgelm.cli.output import printable
from edgelm.cli.wrong_usage import wrong_usage
from edgelm_training.runs.plot import draw_picture, draw_text

EXAMPLES = """
\b
Examples:
  edgelm plot run/                                in the terminal
  edgelm plot run/ -o loss.png                    as a picture
  edgelm plot run/ other-run/ -o both.svg         two runs in one
"""


@click.command(epilog=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A picture: .png, .svg or .pdf.")
def plot(runs: tuple[Path, ...], output: Path | None) -> None:
    """Draw loss, learning rate and gradient norm of training runs.

    RUNS are the folders of runs, also of those that still go on.
    """
    if output is None:
        click.echo(draw_text(runs, width=min(100, shutil.get_terminal_size().columns)))
    else:
        with wrong_usage():  # the file's suffix
            lacking = draw_picture(runs, output)
        if lacking:
            click.echo(
                f"No font of this machine has {printable(lacking)}: boxes stand in their place. Install one that "
                "has, such as Noto Sans CJK, or rename the runs.",
                err=True,
            )
        click.echo(str(output))

"""`edgelm push`: give a package to others through a hub."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgelm.cli.generation_options import complete_model
from edgelm.cli.output import can_redraw, one_line
from edgelm.library.hub_source import HubSource
from edgelm.library.hub_upload import UploadOptions, upload
from edgelm.library.library import Library


@click.command()
@click.argument("package", shell_complete=complete_model)
@click.argument("repository", metavar="hf:ORG/REPO")
@click.option("--private", is_flag=True, help="Make the repository one that only its owners can read.")
@click.option("--replace-card", is_flag=True, help="Write README.md anew where the repository has one.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File with a token that may write.  [default: HF_TOKEN, or what `hf auth login` left]",
)
def push(package: str, repository: str, private: bool, replace_card: bool, token_file: Path | None) -> None:
    """Upload a package to a hub, with a card that says what it is.

    PACKAGE is a name from the library or a folder. The repository is made if it is missing. All files arrive in one
    commit, and `edgelm pull hf:ORG/REPO` brings them back as they are. Check first that the model's licence lets you
    pass it on.

    \b
    Examples:
      edgelm push my-model hf:me/my-model --private
      edgelm push package/ hf:org/my-model-int4 --token-file token
      HF_ENDPOINT=https://hub.example edgelm push my-model hf:me/my-model
    """
    target = HubSource.parse_repository(repository)
    folder = Library().find(package)
    options = UploadOptions(
        private=private, replace_card=replace_card, token_file=token_file, show_progress=can_redraw(sys.stderr)
    )
    result = upload(folder, target.repo, options)
    if result.kept_card:
        click.echo("The repository's README.md stays as it is; --replace-card writes it anew.", err=True)
    click.echo(f"Uploaded: {one_line(result.url)}", err=True)
    click.echo(f"To fetch it: edgelm pull {target.reference}", err=True)

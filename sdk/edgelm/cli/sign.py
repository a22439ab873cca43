"""`edgelm sign`: say by a signature who made a package."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgelm.cli.generation_options import complete_model
from edgelm.library.library import Library
from edgelm.package.signature import PASSWORD_VARIABLE


@click.command()
@click.argument("model", shell_complete=complete_model)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    required=True,
    help=f"The private key: elliptic curve, PEM. Its password, if it has one, is taken from ${PASSWORD_VARIABLE}.",
)
def sign(model: str, key: Path) -> None:
    """Sign a package, so that others can check who made it.

    MODEL is a name from the library or a folder, also that of an exported adapter. The signature covers every file and
    lies beside them, as edgelm.sig; no network is used. `model_signing verify key` checks it too.

    \b
    Examples:
      openssl ecparam -name prime256v1 -genkey -noout -out publisher.key
      openssl ec -in publisher.key -pubout -out publisher.pub
      edgelm sign package/ --key publisher.key
      edgelm verify package/ --public-key publisher.pub
      edgelm --require-signature publisher.pub run package/ "Hello"
    """
    # Imported here, so that --help needs no model-signing.
    from edgelm.package.adapter import is_adapter
    from edgelm.package.signature import sign as sign_package

    folder = Path(model) if is_adapter(Path(model)) else Library().find(model)
    path = sign_package(folder, key, os.environ.get(PASSWORD_VARIABLE) or None)
    click.echo(f"Signed: {path}", err=True)

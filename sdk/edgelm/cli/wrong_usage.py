"""What a command says where an option's value is refused: that its usage is wrong, exit code 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import click
from click.core import ParameterSource

from edgelm.cli.output import printable
from edgelm.errors import ConfigError


@contextlib.contextmanager
def wrong_usage(names: Iterable[str] | None = None) -> Iterator[None]:
    """Turn what a block refuses of the options that were given into wrong usage.

    names: the options' parameters; None: all that the command has.

    Raises:
        click.UsageError: the block raised a ConfigError.
    """
    try:
        yield
    except ConfigError as error:
        raise refused(str(error), *(click.get_current_context().params if names is None else names)) from error


def refused(message: str, *names: str) -> click.UsageError:
    """Return the error that says what is wrong with options, `names`; and where one of them was set elsewhere than on
    the command line, how to see where.
    """
    context = click.get_current_context()
    sources = {context.get_parameter_source(name) for name in names}
    is_elsewhere = bool(sources & {ParameterSource.DEFAULT_MAP, ParameterSource.ENVIRONMENT})
    shown = printable(message)  # it may hold the name that a package has chosen
    return click.UsageError(f"{shown} {where_set(context)}" if is_elsewhere else shown)


def where_set(context: click.Context) -> str:
    """Say how to see what sets a command's options."""
    called = context  # of `edgelm cache clear`, whose settings are shown with those of `cache`
    while called.parent is not None and called.parent.parent is not None:
        called = called.parent
    return f"`edgelm config {called.info_name}` shows where it is set."

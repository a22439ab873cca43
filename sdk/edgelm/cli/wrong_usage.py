"""What a command says where an option's value is refused: that its usage is wrong, exit code 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import click
from click.core import ParameterSource

from edgelm.cli.output import printable
from edgelm.errors import ConfigError

_REPLACED = (type(click.INT), type(click.FLOAT), click.Choice)  # with IntRange and FloatRange


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


def refuse_given_twice(command: click.Command, name: str, words: Sequence[str], parent: click.Context) -> None:
    """Refuse two files, names or texts for an option that takes one, of which click would take the last in silence.

    A second number, or choice, does replace the first, which may be an alias's.

    words: what stands behind the command's name.

    Raises:
        click.UsageError: names the option.
    """
    # Other errors of the words are left to the call itself.
    context = click.Context(
        command, info_name=name, parent=parent, **{**command.context_settings, "resilient_parsing": True}
    )
    _, rest, order = command.make_parser(context).parse_args(list(words))
    options = [each for each in order if isinstance(each, click.Option)]
    for option in options:
        takes_one = not (option.is_flag or option.count or option.multiple or isinstance(option.type, _REPLACED))
        if takes_one and options.count(option) > 1:
            shown = max(option.opts, key=len)
            raise click.UsageError(f"{shown} is given {options.count(option)} times; give it once.", context)
    inner = command.commands.get(rest[0]) if isinstance(command, click.Group) and rest else None
    if inner is not None:
        refuse_given_twice(inner, rest[0], rest[1:], context)


def where_set(context: click.Context) -> str:
    """Say how to see what sets a command's options."""
    called = context  # of `edgelm cache clear`, whose settings are shown with those of `cache`
    while called.parent is not None and called.parent.parent is not None:
        called = called.parent
    return f"`edgelm config {called.info_name}` shows where it is set."

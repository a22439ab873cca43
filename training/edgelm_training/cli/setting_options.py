"""Flags of a command for the settings of a dataclass, one for each field, with the field's help and default."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgelm.errors import ConfigError
from edgelm_training.settings.settings import checked_settings, read_settings, value_type
from edgelm_training.settings.train_config import TrainConfig

_SHORT = {"output": "-o"}
_METAVARS = {int: "N", float: "F", str: "TEXT", tuple: "TEXT", dict: "KEY=VALUE"}


def setting_options(config_class: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a flag for each field of `config_class` to a command; `given_settings` sorts out what was given."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for field in reversed(dataclasses.fields(config_class)):
            command = _option(field, value_type(config_class, field.name))(command)
        return command

    return add


def given_settings(
    config_class: type[TrainConfig], flags: dict[str, Any], toml: Path | None, *, resume: bool
) -> dict[str, Any]:
    """Return the settings that stand in the TOML file or were given as flags, which win.

    resume: they are a part of the settings, and the run has the rest.

    Raises:
        ConfigError: a key is unknown, or a value has another type than its setting; or a flag was typed that changes
            nothing beside the others. (A file may hold settings for several methods.)
    """
    settings = read_settings(toml, config_class) if toml is not None else {}
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    for name in [name for name in given if value_type(config_class, name) is dict]:
        given[name] = {**settings.get(name, {}), **_table(name, given[name])}
    settings |= checked_settings(given, config_class)
    if not resume:
        _refuse_idle(config_class(**settings))
    return settings


def _refuse_idle(config: TrainConfig) -> None:
    context = click.get_current_context()
    for name, purpose in config.idle().items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} changes nothing here: it is for {purpose}. Leave it out.")


def toml_or_folder(source: Path | None, flags: dict[str, Any], name: str, what: str) -> Path | None:
    """Return the TOML file that a command's argument is; else put the folder that it is among the flags, as `name`.

    Raises:
        click.UsageError: the flag names another folder.
    """
    if source is None or source.suffix == ".toml":
        return source
    if flags[name] is not None:
        raise click.UsageError(f"The {what} is named twice: {source} and --{name} {flags[name]}.")
    flags[name] = str(source)
    return None


def _option(field: dataclasses.Field[Any], kind: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    flag = f"--{field.name.replace('_', '-')}"
    names = [flag, field.name] if field.name not in _SHORT else [_SHORT[field.name], flag, field.name]
    help_text, choices = field.metadata["help"], field.metadata["choices"]
    if field.default not in (None, (), ("",)) and "[" not in help_text:
        shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
        help_text += f"  [default: {shown}]"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=help_text)
    if choices:
        return click.option(*names, type=click.Choice(choices), help=help_text)
    several = kind in (tuple, dict)
    return click.option(
        *names, type=str if several else kind, multiple=several, metavar=_METAVARS[kind], help=help_text
    )


def _table(name: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Turn KEY=VALUE, where VALUE is written as in TOML (a text needs no quotes), into a table."""
    table = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--{name} is {pair!r}; write it as KEY=VALUE, such as num_hidden_layers=8.")
        try:
            table[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = text
    return table

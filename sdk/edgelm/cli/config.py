"""`edgelm config`: which settings are in force, and where each comes from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from edgelm.arguments import did_you_mean
from edgelm.cli.config_file import SECRET, ConfigFile, config_path, name_variables, settings
from edgelm.cli.output import print_json, printable
from edgelm.cli.wrong_usage import refused, wrong_usage

_SOURCES = {
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One option of one command: its value where no flag says another, and where that comes from."""

    command: str
    name: str
    value: Any
    source: str
    variable: str | None  # of the environment; arguments have none


def _complete_command(context: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    group = context.find_root().command
    assert isinstance(group, click.Group)
    return [CompletionItem(name) for name in group.list_commands(context) if name.startswith(incomplete)]


@click.command()
@click.argument("command", required=False, shell_complete=_complete_command)
@click.option("--path", "path_only", is_flag=True, help="Print only the path of the config file.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_context
def config(context: click.Context, /, command: str | None, path_only: bool, as_json: bool) -> None:
    """Show which settings are in force, and where each comes from.

    Without COMMAND, those that the config file or the environment changes; with one, all of its options. A flag wins
    over the environment (EDGELM_COMMAND_OPTION), that over the file ($EDGELM_CONFIG, or edgelm.toml in the user's
    folder for settings), and that over the default.

    \b
    Examples:
      edgelm config
      edgelm config chat
      $EDITOR "$(edgelm config --path)"
      edgelm config --json | jq '.settings[] | select(.command == "serve")'
    """
    if path_only and as_json:
        raise refused("--path and --json exclude each other; give one.", "path_only", "as_json")
    if path_only:
        click.echo(config_path())
        return
    root = context.find_root()
    with wrong_usage():
        file = ConfigFile.load()
        found = list(_settings(root, file, command))
    assert isinstance(root.command, click.Group)
    for line in _misspelt(found, root.command.list_commands(root)):
        click.echo(printable(line), err=True)
    if command is None:
        found = [setting for setting in found if setting.source != "default"]
    if as_json:
        facts = {"path": str(file.path), "exists": file.path.exists(), "settings": [asdict(one) for one in found]}
        print_json(facts)
        return
    click.echo(f"{file.path}{'' if file.path.exists() else ' (not written yet)'}", err=command is not None)
    for setting in found:
        shown = "" if setting.value is None else json.dumps(setting.value, ensure_ascii=False, default=str)
        origin = setting.source
        if setting.variable is not None and (setting.source == "environment" or command is not None):
            origin += f" (${setting.variable})"
        click.echo(f"{f'{setting.command}.{setting.name}':<28} {printable(shown):<24} {origin}")


def _settings(root: click.Context, file: ConfigFile, only: str | None) -> Iterator[Setting]:
    group = root.command
    assert isinstance(group, click.Group)
    names = group.list_commands(root)
    file.check_sections(names)
    if only is not None and only not in names:
        raise click.UsageError(f"There is no command {only!r}. There are {', '.join(names)}.")
    for name in names if only is None else [only]:
        try:
            command = group.get_command(root, name)
        except Exception:  # an extra is missing, or another package's command is broken: the others have settings
            if only is not None:
                raise
            continue
        assert command is not None
        name_variables(command, f"{root.auto_envvar_prefix}_{name}")
        with click.Context(command, parent=root, info_name=name, default_map=file.defaults(name, command)) as context:
            yield from _settings_of(name, command, context)


def _misspelt(found: list[Setting], commands: list[str]) -> Iterator[str]:
    """Name the variables that look like those of the commands that were found, and set none of their options."""
    known = [setting.variable for setting in found if setting.variable is not None]
    asked = {setting.command.partition(".")[0] for setting in found}
    begins = {name: f"EDGELM_{name}_".upper().replace("-", "_") for name in commands}
    for variable in sorted(os.environ.keys() - known):
        # Of two commands, such as export and export-adapter, the longer name.
        owner = max((name for name in commands if variable.startswith(begins[name])), key=len, default=None)
        if owner in asked:
            yield f"{variable} sets nothing.{did_you_mean(variable, known, most=1)}"


def _settings_of(name: str, command: click.Command, context: click.Context) -> Iterator[Setting]:
    for key, parameter in settings(command).items():
        value, source = parameter.consume_value(context, {})
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no word for it
        if not isinstance(value, (str, int, float, list, tuple)):
            value = None
        elif key in SECRET and value:
            value = "(hidden)"
        yield Setting(
            command=name,
            name=key,
            value=value,
            source=_SOURCES[source],
            variable=str(parameter.envvar) if parameter.envvar is not None else None,
        )
    for inner_name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        with click.Context(inner, parent=context, info_name=inner_name) as inner_context:
            yield from _settings_of(f"{name}.{inner_name}", inner, inner_context)

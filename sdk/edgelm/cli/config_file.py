"""ConfigFile: what a user wants the commands' options to be where neither a flag nor the environment says it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from edgelm.arguments import did_you_mean
from edgelm.cli.adapter_options import NamedFolder
from edgelm.errors import ConfigError
from edgelm.files.folders import HOME_VARIABLE, config_folder
from edgelm.files.regular_file import MAX_TOML_BYTES, read_text

FILE_NAME = "edgelm.toml"
VARIABLE = "EDGELM_CONFIG"
SECRET = {"api_key"}  # others can see a terminal, and a report is passed on
# What TOML has to hold for an option of a type; everything else is a text.
_KINDS: tuple[tuple[type[click.ParamType[Any]], tuple[type, ...], str], ...] = (
    (click.types.BoolParamType, (bool,), "true or false"),
    (click.types.IntParamType, (int,), "a whole number"),
    (click.types.FloatParamType, (int, float), "a number"),
)


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """The file's path, and its sections: one for each command, and in it one for each command of a group."""

    path: Path
    sections: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls) -> ConfigFile:
        """Read the file that $EDGELM_CONFIG names, or that of this user, which may be missing.

        Raises:
            ConfigError: it cannot be read, is no TOML, or is larger than 32 KiB.
        """
        try:
            path = config_path()
        except ConfigError:  # no home: what needs none still runs
            return cls(path=Path(FILE_NAME))
        try:
            text = read_text(path, MAX_TOML_BYTES)
            import tomllib  # most have no such file

            sections = tomllib.loads(text)
            repr(sections)  # a ValueError: a number, in hexadecimal, that is too long to be written into a message
            return cls(path=path, sections=sections)
        except (FileNotFoundError, NotADirectoryError) as error:
            if os.environ.get(VARIABLE):
                raise ConfigError(f"{VARIABLE} is {path}, and there is no such file. Write it, or unset it.") from error
            return cls(path=path)
        except PermissionError as error:
            instead = f"unset {VARIABLE}" if os.environ.get(VARIABLE) else f"set {HOME_VARIABLE} to a folder of yours"
            raise ConfigError(
                f"{path} may not be read: {error.strerror}. Let this user read it and enter its folder, or {instead}."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            instead = f"unset {VARIABLE}" if os.environ.get(VARIABLE) else "remove it"
            raise ConfigError(f"{path} cannot be read: {str(error).rstrip('.')}. Correct it, or {instead}.") from error

    def check_sections(self, commands: Iterable[str]) -> None:
        """Refuse what is no section of a command.

        Raises:
            ConfigError: names the file, what is wrong, and what there is.
        """
        known = sorted(commands)
        for name, section in self.sections.items():
            if name not in known:
                raise ConfigError(
                    f"{self.path}: there is no command {name!r}.{did_you_mean(name, known, most=1)} Its sections are "
                    f"named for the commands: {', '.join(known)}."
                )
            self._check_section(name, section)

    def _check_section(self, name: str, section: Any) -> None:
        if not isinstance(section, dict):
            raise ConfigError(f"{self.path}: {name} is {section!r}; it must be a section, [{name}].")

    def defaults(self, name: str, command: click.Command) -> dict[str, Any]:
        """Return a command's section as click takes it, `Context.default_map`: values by the names of parameters.

        Raises:
            ConfigError: a setting is unknown, or has a value of another type or outside of its range.
        """
        return self._defaults(name, command, self.sections.get(name, {}))

    def _defaults(self, name: str, command: click.Command, section: Mapping[str, Any]) -> dict[str, Any]:
        parameters = settings(command)
        commands = command.commands if isinstance(command, click.Group) else {}
        values: dict[str, Any] = {}
        for key, value in section.items():
            if key in commands:
                self._check_section(f"{name}.{key}", value)
                values[key] = self._defaults(f"{name}.{key}", commands[key], value)
                continue
            if key not in parameters:
                known = [*parameters, *commands]
                meant = did_you_mean(key.replace("-", "_"), known, most=1)
                raise ConfigError(f"{self.path}: [{name}] has no setting {key!r}.{meant} There are {', '.join(known)}.")
            parameter = parameters[key]
            assert parameter.name is not None
            values[parameter.name] = self._checked(f"[{name}] {key}", parameter, value, click.Context(command))
        return values

    def _checked(self, label: str, parameter: click.Parameter, value: Any, context: click.Context) -> Any:
        several = parameter.nargs != 1 or parameter.multiple
        if several and not isinstance(value, list):
            raise ConfigError(f"{self.path}: {label} is {_shown(parameter, value)}; it must be a list, in [ ].")
        values = [self._placed(parameter, one, label) for one in (value if several else [value])]
        checked = values if several else values[0]
        try:
            parameter.type_cast_value(context, checked)
        except click.BadParameter as error:
            raise ConfigError(f"{self.path}: {label}: {error.message.rstrip('.')}. Correct it.") from error
        except OverflowError as error:  # a whole number of hundreds of digits, for an option that takes a float
            raise ConfigError(f"{self.path}: {label} is too large a number. Correct it.") from error
        return checked

    def _placed(self, parameter: click.Parameter, value: Any, label: str) -> Any:
        """Check the type of one value; a path is taken from the file's folder."""
        fitting = ((kinds, wanted) for type_, kinds, wanted in _KINDS if isinstance(parameter.type, type_))
        kinds, wanted = next(fitting, ((str,), "a text"))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ConfigError(f"{self.path}: {label} is {_shown(parameter, value)}; it must be {wanted}.")
        if isinstance(parameter.type, click.Path):
            return str(self.path.parent / os.path.expanduser(str(value)))
        if isinstance(parameter.type, NamedFolder):
            return parameter.type.placed(str(value), self.path.parent)
        return value


def config_path() -> Path:
    """Return the path of the config file, which may not exist.

    Raises:
        ConfigError: the user has no home folder.
    """
    chosen = os.environ.get(VARIABLE)
    return Path(os.path.expanduser(chosen)).absolute() if chosen else config_folder() / FILE_NAME


def settings(command: click.Command) -> dict[str, click.Parameter]:
    """Return what the config file can set of a command: its options, and the arguments that may be left out."""
    found: dict[str, click.Parameter] = {}
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            longest = max(parameter.opts, key=len)
            found[longest.lstrip("-").replace("-", "_")] = parameter
        elif not parameter.required and parameter.name is not None:
            found[parameter.name] = parameter
    return found


def name_variables(command: click.Command, prefix: str) -> None:
    """Let the environment set each option by its long name, as the config file does: `prefix`_<OPTION>.

    click alone takes the name of the function's parameter, which is another where Python has a word of its own.
    """
    for key, parameter in settings(command).items():
        if isinstance(parameter, click.Option) and parameter.allow_from_autoenv:
            parameter.envvar = f"{prefix}_{key}".upper().replace("-", "_")
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        name_variables(inner, f"{prefix}_{name}")


def _shown(parameter: click.Parameter, value: Any) -> str:
    return "(hidden)" if parameter.name in SECRET else repr(value)

"""Settings of a training run: fields of a dataclass, which are lines of a TOML file and flags of a command too."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from edgelm.arguments import is_number, is_whole
from edgelm.errors import ConfigError
from edgelm.files.regular_file import MAX_TOML_BYTES, read_text

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list of texts"}


class SettingError(ConfigError):
    """A setting is missing or has a value that it cannot have; of a command, that is wrong usage."""


def setting(default: Any, help_text: str, *, choices: tuple[str, ...] = ()) -> Any:
    """Declare a dataclass field with the help text, and the allowed words, of its flag."""
    return dataclasses.field(default=default, metadata={"help": help_text, "choices": choices})


# Each setting asks for its own, and a class's are evaluated together: 60 ms at the start of every run and command.
_type_hints = functools.cache(get_type_hints)


def value_type(config_class: type[Any], name: str) -> type:
    """Return the plain type of a setting: int, float, bool, str, tuple (of texts) or dict (a table).

    Raises:
        ConfigError: it is declared as something else, which no line of TOML and no flag would give.
    """
    hint = _type_hints(config_class)[name]  # type: ignore[arg-type]  # mypy finds no hash in a type[Any]
    if isinstance(hint, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    origin = get_origin(hint) or hint
    found = dict if isinstance(origin, type) and issubclass(origin, Mapping) else origin
    if found not in (*_WORDS, dict):
        raise ConfigError(
            f"{config_class.__name__}.{name} is declared as {hint}; a setting is an int, float, bool, str, "
            "tuple[str, ...] or Mapping, or None."
        )
    return found


def read_settings(path: str | Path, config_class: type[Any]) -> dict[str, Any]:
    """Read a TOML file of settings of `config_class`; only those that stand in it are returned.

    Raises:
        ConfigError: the file is missing or is no TOML; a key is unknown (the message names the nearest known one); or a
            value has another type than its setting.
    """
    path = Path(path)
    try:
        values = tomllib.loads(read_text(path, MAX_TOML_BYTES))
    except (OSError, ValueError, RecursionError) as error:  # TOML and UTF-8 errors are ValueErrors
        raise ConfigError(f"Cannot read {path}: {error}.") from error
    try:
        return checked_settings(values, config_class)
    except (ConfigError, ValueError) as error:  # ValueError: a number too long to be written into a message
        raise ConfigError(f"{path}: {error}") from error


def checked_settings(values: Mapping[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """Return the values in their settings' types: numbers of NumPy too, and paths where texts are wanted. None is left
    to a setting that has no value by default.

    Raises:
        ConfigError: a key is unknown, or a value has another type than its setting, or is a text that is no UTF-8.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    checked = {}
    for name, value in values.items():
        if name not in defaults:
            raise ConfigError(unknown_key(name, list(defaults)))
        is_left = value is None and defaults[name] is None
        checked[name] = None if is_left else _checked(name, value, value_type(config_class, name))
        _check_utf8(name, checked[name])
    return checked


def unknown_key(name: str, known: list[str]) -> str:
    """Say that a setting does not exist, and which one may be meant."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known: {', '.join(known)}."
    return f"There is no setting {name!r}. {hint}"


def _checked(name: str, value: Any, wanted: type) -> Any:
    if wanted is float and is_number(value) and (not isinstance(value, int) or abs(value) < 2**1023):
        return float(value)
    if wanted is int and is_whole(value):
        return int(value)
    if wanted is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if wanted is tuple and isinstance(value, (list, tuple)) and all(isinstance(v, str | os.PathLike) for v in value):
        return tuple(map(os.fspath, value))
    if wanted is dict and isinstance(value, Mapping):
        return dict(value)
    if type(value) is not wanted:
        raise ConfigError(f"{name} is {value!r}; it must be {_WORDS.get(wanted, 'a table')}.")
    return value


def _check_utf8(name: str, value: Any) -> None:
    """Refuse bytes of a path or an argument that TOML cannot hold: the system passes them on as lone surrogates."""
    try:
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name} is {value!r}, which is no UTF-8, as the settings of a run are written down. Write it in UTF-8; "
            "give a file or a folder another name, or a link."
        ) from error


def to_toml(config: Any) -> str:
    """Write a dataclass of settings as TOML; settings without a value (None) are left out."""
    lines, tables = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Mapping):
            tables += [f"\n[{field.name}]", *_table(value)]
        elif value is not None:
            lines.append(f"{field.name} = {_literal(value)}")
    return "\n".join([*lines, *tables]) + "\n"


def _table(values: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_literal(value)}" for key, value in values.items() if value is not None]


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_table(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # JSON has another word for infinity
    # JSON's texts, numbers, true and false are TOML's, but for the escape of DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Arguments as people guess them: settings that may be left out, and lists that are none."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from edgelm.errors import ConfigError

Settings = TypeVar("Settings")
Item = TypeVar("Item")


def or_default(name: str, value: Settings | None, default: Settings) -> Settings:
    """Return the settings that were given, or the default for None.

    Raises:
        ConfigError: `value` is of another class than `default`, such as a dict.
    """
    if value is None:
        return default
    if not isinstance(value, type(default)):
        kind = type(default).__name__
        raise ConfigError(f"{name} is {value!r}; it must be an edgelm.{kind}, made as edgelm.{kind}(...), or None.")
    return value


def as_list(value: Iterable[Item], what: str) -> list[Item]:
    """Return what can be read one by one as a list, but for what Python would take apart: a text, a mapping.

    Raises:
        ConfigError: it is no list; the message begins with `what`.
    """
    if isinstance(value, (str, bytes)):
        raise ConfigError(f"{what}; put the one text into a list.")
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise ConfigError(f"{what}; this is {reprlib.repr(value)}.")
    return list(value)

"""Arguments as people guess them: settings that may be left out, lists that are none, numbers of numpy's, words for
true and false, paths, names that are misspelt.
"""

from __future__ import annotations

import contextlib
import difflib
import operator
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TypeGuard, TypeVar

from edgelm.errors import ConfigError, ContextLengthError, TokenizerError

Settings = TypeVar("Settings")
Item = TypeVar("Item")


def or_default(name: str, value: Settings | None, default: Settings) -> Settings:
    """Return the settings that were given, or the default for None.

    Raises:
        ConfigError: `value` is of another class than `default`, such as a dict.
    """
    kind = type(default).__name__
    return default if value is None else of_class(name, value, type(default), f"made as edgelm.{kind}(...), or None")


def of_class(name: str, value: object, kind: type[Item], how: str) -> Item:
    """Return a value that is of a class of edgelm's; `how` says where to get one.

    Raises:
        ConfigError: it is of another class, such as the name of a model in the model's place.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r}; it must be an edgelm.{kind.__name__}, {how}.")
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


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Name the text that is read, such as prompts[3], where it is refused."""
    try:
        yield
    except (ContextLengthError, TokenizerError) as error:
        raise type(error)(f"{place}: {error}") from error


def as_token_ids(values: Iterable[int]) -> list[int]:
    """Return token ids as a list of Python's numbers; numpy's and torch's will do.

    Raises:
        TokenizerError: they are none; True and False are none either.
    """
    try:
        ids = list(values)
        # Numbers to Python: of bytes, which are a text to who wrote them, and of a mask of tokens.
        if isinstance(values, (bytes, bytearray)) or bool in map(type, ids):
            raise TypeError("bytes or bool")
        return [operator.index(id_) for id_ in ids]
    except TypeError as error:
        raise TokenizerError(
            f"{reprlib.repr(values)} is neither a text nor a list of token ids. A conversation is answered by chat, "
            "stream_chat and Engine.submit_chat, a list of texts by generate_batch; score takes one text at a time."
        ) from error


def as_path(path: str | Path) -> Path:
    """Return a path as a shell reads it: `~` is the user's home.

    Raises:
        ConfigError: it is no path, or there is no such home.
    """
    try:
        if "\0" in str(path):
            raise ValueError("it holds a null byte")
        return Path(path).expanduser()
    except (TypeError, ValueError, RuntimeError) as error:
        shown, reason = str(path) if isinstance(path, Path) else path, str(error).rstrip(".")
        raise ConfigError(f"{reprlib.repr(shown)} is no path: {reason}.") from error


def did_you_mean(given: str, known: Iterable[str], *, most: int = 2, alike: float = 0.6) -> str:
    """Return the question whether one of the names that there are was meant, with a space before it; "": none is near.

    alike: how alike two names must be, from 0 to 1.
    """
    close = difflib.get_close_matches(given, list(known), n=most, cutoff=alike)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def check_boolean(name: str, value: object) -> None:
    """Check that a value is True or False: a "no" would be true.

    Raises:
        ConfigError: it is neither.
    """
    if value not in (True, False):
        raise ConfigError(f"{name} is {value!r}; it must be True or False.")


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number, also one of numpy's; to Python a bool is one."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Tell whether a value is a whole number, as `is_number` does."""
    return isinstance(value, Integral) and is_number(value)

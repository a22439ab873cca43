"""Regular files of a package: opened once, checked through what was opened, read within bounds."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from edgelm.errors import PackageError
from edgelm.files import lfs_pointer

# Each system has its own of them; none that is missing is needed there.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
# The largest file of settings in use has 1.2 MB and 50,000 values: it describes 6,400 added tokens.
MAX_JSON_BYTES = 3 << 19
# Each value is an object of Python's, whatever its size: without this bound, the worst JSON takes 24 times its size.
MAX_JSON_VALUES = 1 << 17
# TOML takes ten times as long. Settings have a few kilobytes, a rule of a recipe has 60 bytes.
MAX_TOML_BYTES = 1 << 15
_JSON_TEXT = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

_OWN_FOLDER = Path(__file__).resolve().parents[1]


def open_regular(path: Path) -> BufferedReader:
    """Open a file that is a regular one with this name alone, for reading.

    The answer holds for what was opened: nobody can put a link in its place between the check and the use. A second
    name (a hard link) is refused because whoever may write there changes the file here. Installers hard-link what they
    install, so edgelm's own files are exempt: whoever can change those can change edgelm.

    Raises:
        PackageError: it is missing, a link, a folder, a device, a pipe or a pointer of git-lfs, has a second name, or
            cannot be read.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # opening a device or a pipe can have effects, or wait for ever
            raise _not_regular(path)
        file = os.fdopen(os.open(path, _FLAGS), "rb")
    except (FileNotFoundError, ValueError) as error:  # ValueError: a NUL in the name
        raise _not_regular(path) from error
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error}.") from error
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(path)
        if status.st_nlink > 1 and _OWN_FOLDER not in path.resolve().parents:
            raise PackageError(
                f"{path} has a second name on this disk (a hard link), through which it can be changed. "
                "Put a copy of the file in its place."
            )
        if lfs_pointer.is_pointer(file):
            raise PackageError(f"{path} {lfs_pointer.EXPLANATION}")
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, most: int) -> bytes:
    """Read a whole regular file of at most `most` bytes.

    Raises:
        PackageError: as `open_regular`, or it is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise PackageError(f"{path} has {size} bytes; at most {most} are read.")
        try:
            return file.read(size + 1)
        except OSError as error:
            raise PackageError(f"{path} cannot be read: {error}.") from error


def read_file(path: Path, most: int) -> bytes:
    """Read a whole file of at most `most` bytes; links are followed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or is no file but a pipe or the like.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe waits for ever
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # of what was opened: another file may have taken its place since
        if size > most:
            raise ValueError(f"it has {size} bytes, and at most {most} are read")
        # Python sets aside as much memory as is asked for, however short the file is.
        return file.read(size + 1)


def read_text(path: Path, most: int = MAX_JSON_BYTES, encoding: str = "utf-8-sig") -> str:
    """Read a text file as `read_file` does; a byte order mark is taken off.

    Raises:
        OSError, ValueError: as `read_file`, or it is not of that encoding.
    """
    return read_file(path, most).decode(encoding)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file of settings in JSON, as `read_text` reads a text.

    Raises:
        OSError, ValueError: as `read_text`, or it is no JSON object.
    """
    values = bounded_json(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def parse_json(data: bytes) -> Any:
    """Parse JSON that has one meaning: UTF-8, whole characters, numbers that are finite, each key of an object once.

    Raises:
        ValueError: it is not; nesting that Python cannot follow is reported so too.
    """
    return bounded_json(data.decode("utf-8"), parse=_parse_strictly)


def bounded_json(text: str, most: int = MAX_JSON_VALUES, parse: Callable[[str], Any] = json.loads) -> Any:
    """Parse JSON of at most `most` values, as `json_values` counts them.

    Raises:
        ValueError: it has more, is none, or is nested deeper than Python follows.
    """
    if json_values(text) > most:
        raise ValueError(f"it has {json_values(text)} commas and opening brackets, and at most {most} are read")
    try:
        return parse(text)
    except RecursionError as error:
        raise ValueError(f"its nesting is too deep ({error})") from error


def json_values(text: str) -> int:
    """Count the values of JSON that is not parsed yet: its commas and opening brackets, those in texts too."""
    return sum(map(text.count, ",[{"))


def has_more_values(text: str, most: int) -> bool:
    """Tell whether JSON that is not parsed yet has more than `most` values; its texts may hold any number of commas."""
    # Only where there are very many are texts left out of the count.
    return json_values(text) > most and json_values(_JSON_TEXT.sub("", text)) > most


def _parse_strictly(text: str) -> Any:
    values = finite_json(text, with_keys_once)
    if "\\u" in text:  # as the half of a surrogate pair can be written, which no text that is printed may hold
        json.dumps(values, ensure_ascii=False).encode()
    return values


def finite_json(text: str, of_object: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON whose numbers are finite: Python's own parser takes NaN, and makes infinity of 1e999.

    of_object: what makes an object of its keys and values; None: a dictionary.

    Raises:
        ValueError: it is none.
        RecursionError: its nesting is deeper than Python follows.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=of_object)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is out of range")
    return value


def with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return what stands in an object of JSON, of which this is to be the hook.

    Raises:
        ValueError: a key stands in it twice.
    """
    values = dict(pairs)
    if len(values) != len(pairs):  # Python takes the last of them, other programs the first
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {twice!r:.80} twice in an object")
    return values


def _not_regular(path: Path) -> PackageError:
    return PackageError(f"{path} is missing or not a regular file. Export or download the package again.")

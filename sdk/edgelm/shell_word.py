"""A word of a command that a message tells the reader to type, as the shells of this system read it."""

from __future__ import annotations

import os
import re
import shlex
import sys

_PLAIN = re.compile(r"[\w.:/\\+-]+")  # of Windows: nothing here is special to cmd.exe or PowerShell


def shell_word(text: str | os.PathLike[str]) -> str:
    """Return a path or a name in quotes, where a shell needs them.

    On Windows they are double ones: cmd.exe knows no others, and no path has one in it.
    """
    word = os.fspath(text)
    if sys.platform != "win32":
        return shlex.quote(word)
    return word if _PLAIN.fullmatch(word) else f'"{word}"'

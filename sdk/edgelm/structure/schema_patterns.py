r"""Schema patterns: control characters in the patterns of a JSON schema, which stand in a text of JSON as escapes.

llguidance writes those that JSON_STYLE has an escape for, such as \n. The others it leaves out of a text.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Any

from edgelm.errors import ConfigError

_CODE = "(?:0[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])"
_UNWRITTEN = (
    rf"[\0-\x07\x0b\x0e-\x1f\x7f]|\\(?:[av]|x{_CODE}|u00{_CODE}|U000000{_CODE}"
    r"|[xuU]\{0*(?:[0-7bBeEfF]|1[0-9a-fA-F]|7[fF])\})"
)
_PIECES = re.compile(rf"(?P<alone>\[(?:{_UNWRITTEN})\]|{_UNWRITTEN})|\\.|(?P<opens>\[\^?\]?)|(?P<closes>\])", re.DOTALL)
_SETS = re.compile(
    r"(?P<property>\\[pP](?:\{[^}]{1,64}\}|[A-Z]))"
    r"|\\.|\[:\^?\w+:\]"  # the last inside of a set alone
    r"|(?P<negated>\[\^)(?P<first>[]-]?)"
    r"|\[(?P<start>[]-]?)(?=(?:\\.|[^]\\])*?(?:\\[xuUpPDWS]|[\0-\x1f]|\[))",  # those that may have U+0000
    re.DOTALL,
)
_ALL_BUT_NULL = r"[\x01-\x{10ffff}&&"


def close_patterns(part: dict[str, Any]) -> None:
    """Take U+0000, which no answer has, out of the sets in patterns.

    In a text of JSON, llguidance 1.9 lets a quotation mark and a backslash stand for any set that has all control
    characters, also for one that has neither of those two.

    Raises:
        ConfigError: a pattern asks for a control character that is not written.
    """
    if isinstance(part.get("pattern"), str):
        part["pattern"] = _closed(part["pattern"])
    if isinstance(named := part.get("patternProperties"), dict):
        part["patternProperties"] = {_closed(pattern): schema for pattern, schema in named.items()}


def drop_patterns(part: dict[str, Any], is_held: Callable[[Any], bool]) -> None:
    """Leave out the patterns that `close_patterns` refuses, and those that are not held."""

    def stays(pattern: Any) -> bool:
        return is_held(pattern) and not (isinstance(pattern, str) and _unwritten(pattern))

    if "pattern" in part and not stays(part["pattern"]):
        del part["pattern"]
    if isinstance(named := part.get("patternProperties"), dict):
        part["patternProperties"] = {pattern: schema for pattern, schema in named.items() if stays(pattern)}


def _closed(pattern: str) -> str:
    if alone := _unwritten(pattern):
        raise ConfigError(
            f"The JSON schema cannot be enforced: the pattern {reprlib.repr(pattern)} has {alone!r}, a control "
            "character that is not written. Take another in its place."
        )
    return _SETS.sub(_without_null, pattern)


def _unwritten(pattern: str) -> str | None:
    """Return a control character, as it stands in a pattern, that is asked for and has no escape.

    In a set with others it is one that may stand there, and does not.
    """
    depth = 0
    for piece in _PIECES.finditer(pattern):
        if piece["opens"]:
            depth += 1
        elif piece["closes"]:
            depth = max(0, depth - 1)
        elif piece["alone"] and depth == 0:
            return piece["alone"]
    return None


def _without_null(found: re.Match[str]) -> str:
    first = found["first"] or found["start"]
    escaped = f"\\{first}" if first else ""
    if found["negated"]:
        return rf"[^\x00{escaped}"
    if found["property"]:
        return f"{_ALL_BUT_NULL}{found[0]}]"
    return found[0] if found["start"] is None else _ALL_BUT_NULL + escaped

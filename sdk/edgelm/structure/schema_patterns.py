r"""Schema patterns: the sets in the patterns of a JSON schema, and control characters, which stand in JSON as escapes.

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
POSIX_CLASS = r"\[:\^?\w{1,16}:\]"
_PARTS = re.compile(
    rf"(?P<unwritten>\[(?:{_UNWRITTEN})\]|{_UNWRITTEN})"
    r"|(?P<property>\\[pP](?:\{[^}]{1,64}\}|[A-Z]))"
    r"|\\."
    rf"|\[(?P<negated>\^?)(?P<inside>\]?(?:{POSIX_CLASS}|\\.|[^]\\])*)(?P<end>\]?)",
    re.DOTALL,
)
_ITEM = rf"{POSIX_CLASS}|\\(?:x\w\w|u\w{{4}}|U\w{{8}}|[xuUpP]\{{[^}}]{{1,64}}\}}|.)|[^\\]"
_RANGES = re.compile(rf"({_ITEM})(?:-({_ITEM}))?", re.DOTALL)
_RUSTS = re.compile(rf"{POSIX_CLASS}|\\.|(\[|&&|--|~~)", re.DOTALL)
_MAY_HAVE_NULL = re.compile(r"\\[xuUpPDWS]|[\0-\x1f]|\[:")
# What Rust's patterns and Python's mean by a digit and by what words are made of; in JSON Schema's they are ASCII.
_CLASSES = {"d": r"\p{Nd}", "w": r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}"}
_ALL_BUT_NULL = r"[\x01-\x{10ffff}&&"


def close_patterns(part: dict[str, Any]) -> None:
    """Take U+0000, which no answer has, out of the sets in patterns, and write them as llguidance reads them.

    In its sets, as in Rust's, stand sets and the operators &&, -- and ~~, which are characters in JSON Schema's. In a
    text of JSON, llguidance 1.9 lets a quotation mark and a backslash stand for any set that has all control
    characters, also for one that has neither of those two.

    Raises:
        ConfigError: a pattern asks for a control character that is not written.
    """
    if isinstance(part.get("pattern"), str):
        part["pattern"] = _closed(part["pattern"])
    if isinstance(named := part.get("patternProperties"), dict):
        part["patternProperties"] = {_closed(pattern): schema for pattern, schema in named.items()}


def drop_patterns(part: dict[str, Any], is_held: Callable[[str], bool]) -> None:
    """Leave out the patterns that `close_patterns` refuses, and those that are not held as it writes them."""

    def stays(pattern: Any) -> bool:
        return not isinstance(pattern, str) or (_unwritten(pattern) is None and is_held(_rewritten(pattern)))

    if "pattern" in part and not stays(part["pattern"]):
        del part["pattern"]
    if isinstance(named := part.get("patternProperties"), dict):
        part["patternProperties"] = {pattern: schema for pattern, schema in named.items() if stays(pattern)}


def refuse_rusts_sets(pattern: str) -> None:
    """Refuse a pattern in Rust's syntax that means something else in a JSON schema.

    Raises:
        ConfigError: it has a set, or an operator, inside of a set.
    """
    for part in _PARTS.finditer(pattern):
        if found := next((own[1] for own in _RUSTS.finditer(part["inside"] or "") if own[1]), None):
            raise ConfigError(
                f"The pattern {reprlib.repr(pattern)} has {found!r} inside of a set: sets and operators there cannot "
                "be enforced in a call. Write out the characters that are meant, with a backslash before one of those."
            )


def in_all_scripts(pattern: str) -> str:
    r"""Write out what \d, \D, \w and \W mean in a pattern of Rust, for a JSON schema, whose own know ASCII alone. A \W
    in a set stays.
    """
    return _PARTS.sub(_in_all_scripts, pattern)


def _in_all_scripts(part: re.Match[str]) -> str:
    if part["end"]:
        return f"[{part['negated']}{re.sub(_ITEM, _spelled, part['inside'])}]"
    if part[0] in (r"\D", r"\W"):
        return f"[^{_CLASSES[part[0][1].lower()]}]"
    return f"[{_CLASSES[part[0][1]]}]" if part[0] in (r"\d", r"\w") else part[0]


def _spelled(item: re.Match[str]) -> str:
    return r"\P{Nd}" if item[0] == r"\D" else _CLASSES.get(item[0][1:], item[0]) if item[0][0] == "\\" else item[0]


def _closed(pattern: str) -> str:
    if alone := _unwritten(pattern):
        raise ConfigError(
            f"The JSON schema cannot be enforced: the pattern {reprlib.repr(pattern)} has {alone!r}, a control "
            "character that is not written. Take another in its place."
        )
    return _rewritten(pattern)


def _unwritten(pattern: str) -> str | None:
    """Return a control character, as it stands in a pattern, that is asked for and has no escape.

    In a set with others it is one that may stand there, and does not.
    """
    return next((part[0] for part in _PARTS.finditer(pattern) if part["unwritten"]), None)


def _rewritten(pattern: str) -> str:
    return _PARTS.sub(_without_null, pattern)


def _without_null(part: re.Match[str]) -> str:
    if part["property"]:
        return f"{_ALL_BUT_NULL}{part[0]}]"
    if not part["end"]:
        return part[0]
    inside = _RANGES.sub(_as_characters, part["inside"])
    if part["negated"]:
        return rf"[^\x00{inside}]"
    return f"{_ALL_BUT_NULL if _MAY_HAVE_NULL.search(inside) else '['}{inside}]"


def _as_characters(found: re.Match[str]) -> str:
    return "-".join(f"\\{item}" if item in "[]&~-" else item for item in found.groups() if item)

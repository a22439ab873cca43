"""Regular grammar: one in Lark whose rules do not lead back to themselves, so that a pattern says the same.

A pattern can be enforced inside of a string of JSON, and wherever else a tool's argument stands; a grammar cannot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from edgelm.errors import ConfigError

_MOST_CHARACTERS = 1 << 16  # of the pattern, in which each rule stands as often as others name it
_MOST_LEVELS = 128
_TEXT = r'"(?:\\.|[^"\\\n])*+"'
_CHARACTER = r'"(?:\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\[^xu]|[^"\\\n])"'
_PART = re.compile(
    rf"""(?P<space>\s++|(?://|\#)[^\n]*+|->\s*+\w++)
    |(?P<head>(?<![^\n])[?!]?(?P<rule>[A-Za-z_]\w*+)\s*+:(?!:))
    |(?P<from>{_CHARACTER})\s*+\.\.\s*+(?P<to>{_CHARACTER})
    |(?P<text>{_TEXT})(?P<any_case>i?)
    |/(?P<pattern>(?:\\.|[^/\\\n])++)/(?P<flags>[a-z]*+)
    |%import\s++common\.(?P<common>[A-Z_]++)(?:\s*+->\s*+(?P<alias>\w++))?
    |~\s*+(?P<fewest>\d++)(?:\s*+\.\.\s*+(?P<most>\d++))?
    |(?P<count>\{{[\d,\s]++\}})
    |(?P<name>[A-Za-z_]\w*+)
    |(?P<sign>[][()|*+?])
    |(?P<unread>.)""",
    re.VERBOSE | re.DOTALL,
)
_SIGNS = {"(": "(?:", "[": "(?:", "]": ")?"}
_SIGN = re.compile(r"[][\\^$.|?*+(){}/&~-]")
_X_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|.)", re.DOTALL)
_FLOAT = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
# Lark's own, https://github.com/lark-parser/lark/blob/master/lark/grammars/common.lark
_COMMON = {
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "CR": r"\r",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "DIGIT": "[0-9]",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
    "FLOAT": _FLOAT,
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[A-Za-z]",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "NUMBER": f"{_FLOAT}|[0-9]+",
    "SIGNED_FLOAT": f"[+-]?(?:{_FLOAT})",
    "SIGNED_INT": "[+-]?[0-9]+",
    "SIGNED_NUMBER": f"[+-]?(?:{_FLOAT}|[0-9]+)",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[A-Za-z]+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
}


def pattern_of(grammar: str) -> str:
    """Return a regular expression of the texts of a grammar in Lark, from its rule `start`.

    Raises:
        ConfigError: a rule leads back to itself, is missing, or is there twice; the pattern would be too long; or the
            grammar has what is no text, pattern or rule.
    """
    return _pattern_of("start", _read(grammar), ())


def _read(grammar: str) -> dict[str, list[re.Match[str] | str]]:
    """Return the parts of each rule: what is a pattern by itself as a text."""
    rules: dict[str, list[re.Match[str] | str]] = {}
    parts: list[re.Match[str] | str] | None = None
    for part in _PART.finditer(grammar):
        common = part["common"] if part["common"] in _COMMON else None
        if name := part["rule"] or (common and (part["alias"] or common)):
            if name in rules:
                raise ConfigError(f"The grammar of a tool's input has two rules {name!r}; it may have one of a name.")
            rules[name] = [_COMMON[common]] if common else []
            parts = None if common else rules[name]
        elif not part["space"]:
            if parts is None or part["unread"] or part["common"]:
                raise ConfigError(
                    f"The grammar of a tool's input has {grammar[part.start() :][:40]!r}, which is not read there. It "
                    "may have rules of texts, patterns and other rules, and %import common.NAME of Lark's own."
                )
            parts.append(part)
    return rules


def _pattern_of(rule: str, rules: Mapping[str, Sequence[re.Match[str] | str]], around: tuple[str, ...]) -> str:
    if rule not in rules:
        raise ConfigError(f"The grammar of a tool's input has no rule {rule!r}.")
    if rule in around:
        raise ConfigError(
            f"The grammar of a tool's input cannot be enforced: its rule {rule!r} leads back to itself. Write what "
            "repeats with * or +, or leave the format out and check the input."
        )
    if len(around) == _MOST_LEVELS:
        raise ConfigError(f"The rules of a grammar of a tool's input lead more than {_MOST_LEVELS} levels deep.")
    written = ""
    for part in rules[rule]:
        if isinstance(part, str):
            written += part
        elif part["name"]:
            written += f"(?:{_pattern_of(part['name'], rules, (*around, rule))})"
        else:
            written += _written(part)
        if len(written) > _MOST_CHARACTERS:
            raise ConfigError(
                f"The grammar of a tool's input is too large: written as one pattern, it has more than "
                f"{_MOST_CHARACTERS} characters."
            )
    return written


def _written(part: re.Match[str]) -> str:
    if part["sign"]:
        return _SIGNS.get(part["sign"], part["sign"])
    if part["count"]:
        return re.sub(r"\s", "", part["count"]).replace("{,", "{0,")
    if part["fewest"]:
        return f"{{{part['fewest']},{part['most'] or part['fewest']}}}"
    if part["pattern"]:
        flags = f"?{part['flags']}:" if part["flags"] else "?:"
        return f"({flags}{part['pattern']})"
    if part["from"]:
        return f"[{_escaped(part['from'])}-{_escaped(part['to'])}]"
    return f"({'?i:' if part['any_case'] else '?:'}{_escaped(part['text'])})"


def _escaped(literal: str) -> str:
    """Return what a text says, as a pattern."""
    try:
        value = json.loads(_X_ESCAPE.sub(lambda escape: f"\\u00{escape[1]}" if escape[1] else escape[0], literal))
    except ValueError as error:
        raise ConfigError(f"The grammar of a tool's input has {literal[:40]}, which is no text: {error}.") from error
    return _SIGN.sub(r"\\\g<0>", value)

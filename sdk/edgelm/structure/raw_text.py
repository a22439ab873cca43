"""The grammar of a text that stands as it is, without quotes, up to a mark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ConfigError
from edgelm.structure.constraint import lark_string
from edgelm.structure.schema_gaps import takes
from edgelm.structure.schema_patterns import POSIX_CLASS
from edgelm.structure.tagged_values import parts_of

_UNENFORCED = ("format", "not", "if")
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HOURS = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
# Those of strict tools at OpenAI, the same or narrower; those of dates have a pattern already.
_FORMATS = {
    "uuid": "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}",
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",
    "ipv6": "(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL}){{0,3}}",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL}){{1,3}}",
    "duration": f"P(?:[0-9]+W|{_DAYS}(?:T{_HOURS})?|T{_HOURS})",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:?#@!$&'()*+,;=\/-]|%[0-9A-Fa-f]{2})+",
}
_SPELLED = {"/": r"\/", "\n": r"\n"}  # between slashes
_ESCAPE = re.compile(r"\\.", re.DOTALL)
# As JSON Schema's patterns have them; Rust's are of all scripts.
_ASCII = {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[0-9A-Za-z_]", r"\W": "[^0-9A-Za-z_]"}
_LONGEST_PATTERN = 4000
_MOST_COUNTED = 2000  # characters of a length that can be followed beside a pattern


def unenforceable(tool: str, problem: str) -> ConfigError:
    """Return the error about a tool's parameters."""
    return ConfigError(f"The parameters of the tool {tool!r} cannot be enforced: {problem}.")


@dataclass(frozen=True, kw_only=True)
class RawText:
    """Write Lark's rules for texts in calls of one tool.

    end: the mark. token: what a grammar calls it where it is a control token. strict: whether what cannot be enforced
    is an error.
    """

    tool: str
    end: str
    token: str = ""
    strict: bool = False

    @property
    def has_lines(self) -> bool:
        """Whether the text stands in lines of its own."""
        return self.end.startswith("\n")

    def word(self, word: str) -> str:
        """Write one text in one piece with its end: where others may stand too, the longest piece counts."""
        return f"{lark_string(word)} {self.token}" if self.token else lark_string(word + self.end)

    def can_be(self, word: str) -> bool:
        """Say whether a text does not end before its end."""
        before = "\n" if self.has_lines else ""
        return f"{before}{word}{self.end}".find(self.end) == len(before + word)

    def rules(self, rule: str, schema: Mapping[str, Any], *, is_beside_brackets: bool = False) -> list[str]:
        """Return the rules, `rule` the first, of a text and its end, in letters or, where it is one, as a token.

        is_beside_brackets: what looks like a list or an object is one.
        """
        if self.strict:
            self._check_text(schema)
        end, terminal = regex(self.end), rule.upper()
        parts = (schema, *parts_of(schema))
        patterns, formats = self._patterns_and_formats(parts)
        is_bounded = any("minLength" in part or "maxLength" in part for part in parts)
        # A text with a pattern may not have its end inside. Where it has a length too, llguidance cannot follow that,
        # so not even the end's first character may be there.
        any_ = f"[^{regex(self.end[0])}]" if patterns and is_bounded else "(?s:.)"
        lengths = [length for part in parts for length in self._length(part, any_, is_beside_brackets)]
        matches = patterns + formats + lengths or [f"{any_}*"]
        may_match_end = bool(patterns) and not is_bounded
        never = [f"(?s:.*){end}(?s:.+)"] if may_match_end else []
        if self.has_lines:
            never.append(f"{regex(self.end.lstrip())}(?s:.*)")
        ended = [f"/(?:{match}){end}/" for match in matches]
        if never:
            ended.append(f"~/{'|'.join(never)}/")
        rules = [f"{rule}_end[lazy]: {terminal}_END", f"{terminal}_END: {' & '.join(ended)}"]
        if not self.token:
            return [f"{rule}: {rule}_end", *rules]
        whole = [f"/{match}/" for match in matches]
        if may_match_end:
            whole.append(f"~/(?s:.*){end}(?s:.*)/")
        return [f"{rule}: {rule}_end | {terminal} {self.token}", *rules, f"{terminal}: {' & '.join(whole)}"]

    def _patterns_and_formats(self, parts: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """Return what the patterns and formats of a schema's parts match, one expression in all at the most."""
        counted = max(part.get("maxLength", part.get("minLength", 0)) for part in parts)
        patterns = [match for part in parts for match in self._pattern(part.get("pattern"), counted)]
        formats = [_FORMATS[part["format"]] for part in parts if part.get("format") in _FORMATS]
        if len(patterns) + len(formats) <= 1:
            return patterns, formats
        if self.strict:  # llguidance gives up on more, in the middle of an answer
            raise unenforceable(self.tool, "of several patterns and formats of a text one alone can be enforced")
        return patterns[:1], []

    def _length(self, schema: Mapping[str, Any], any_: str, is_beside_brackets: bool) -> list[str]:
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if not all(isinstance(length, int) or length == math.inf for length in (least, most)) or least > most:
            raise unenforceable(self.tool, f"a text has at least {least!r} and at most {most!r} characters")
        if (least, most) == (0, math.inf) and not is_beside_brackets:
            return []
        # As many characters as a text must have are none that its end begins with: llguidance follows that easily.
        first = regex(self.end[0])
        opening = rf"[^ \t\r\n\[{{{first if least else ''}]" if is_beside_brackets else any_
        inside = max(least - 1, 0)
        rest = f"[^{first}]{{{inside}}}{any_}{{0,{'' if most == math.inf else most - inside - 1}}}"
        if least == 0:
            return [f"(?:{opening}{rest})?" if most > 0 else ""]
        return [f"{opening}{rest}" if is_beside_brackets else f"[^{first}]{rest}"]

    def _check_text(self, schema: Mapping[str, Any]) -> None:
        keyword = next((key for key in _UNENFORCED if key in schema), None)
        if keyword and not (
            keyword == "format" and (schema["format"] in _FORMATS or '"pattern"' in json.dumps(schema))
        ):
            raise unenforceable(self.tool, f"{keyword!r} cannot be enforced in a text without quotes")

    def _pattern(self, pattern: object, counted: int) -> list[str]:
        """Return a pattern of JSON schemas, which may match anywhere, as one of the whole text."""
        if not isinstance(pattern, str):
            return []
        if len(pattern) <= _LONGEST_PATTERN and counted <= _MOST_COUNTED:
            match = _ESCAPE.sub(
                lambda found: _ASCII.get(found[0], found[0]), "|".join(map(_whole, _alternatives(pattern)))
            )
            if takes(lambda matcher: str(matcher.grammar_from_lark(f"start: TEXT\nTEXT: /{match}/"))):
                return [match]
        if self.strict:
            raise unenforceable(self.tool, f"the pattern {pattern!r} cannot be enforced in a text without quotes")
        return []


def _alternatives(pattern: str) -> list[str]:
    """Part a regular expression where it says "or" outside of all brackets."""
    parts, depth = [""], 0
    spelled = re.sub(r"\\.|[/\n]", lambda found: _SPELLED.get(found[0], found[0]), pattern, flags=re.DOTALL)
    for piece in re.findall(rf"\\.|\[\^?\]?(?:{POSIX_CLASS}|\\.|[^\]\\])*\]|.", spelled, re.DOTALL):
        if piece in "()":
            depth += 1 if piece == "(" else -1
        if piece == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _whole(alternative: str) -> str:
    """Return an expression for the whole of a text that one matches somewhere, unless it says where."""
    inside = alternative.removeprefix("^")
    left = "" if inside != alternative else "(?s:.*)"
    if re.search(r"(?<!\\)(?:\\\\)*\$$", inside):
        return f"{left}(?:{inside[:-1]})"
    return f"{left}(?:{inside})(?s:.*)"


def regex(text: str) -> str:
    """Return a regular expression, between slashes, that matches a text alone."""
    return "".join(_SPELLED.get(char) or re.escape(char) for char in text)

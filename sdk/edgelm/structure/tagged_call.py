"""The grammar of a tool call in tags."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ConfigError
from edgelm.structure.constraint import lark_string
from edgelm.structure.python_call_reader import NAME
from edgelm.structure.tagged_values import resolve_reference, value_form
from edgelm.structure.tool_formats import Tags, ToolFormat

_NOTES = {
    "type", "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions",
    "x-guidance",
}  # fmt: skip
_OF_ALL = {"properties", "required", "additionalProperties", *_NOTES}
_NOT_OF_TEXT = ("format", "not", "if")
_KEY = re.compile(r"[^\s<>](?:[^<>\n]{0,254}[^\s<>])?")
_SPELLED = {"/": r"\/", "\n": r"\n"}  # between slashes
_MOST_COUNTED = 1000
_REFERENCE = re.compile(r'"\$ref": "#')


def tagged_call(
    rule: str,
    name: str,
    parameters: Mapping[str, Any],
    format: ToolFormat,  # noqa: A002
    *,
    strict: bool,
) -> list[str]:
    """Return the rules of a Lark grammar, `rule` the first, for calls of one tool in the format's tags.

    The parameters stand in the schema's order, and those that are not required may be left out; behind them stand
    others, where it allows them. A text stands as it is, as far as its reader does not take it for its end, or for a
    list; any other value is JSON. strict: whether what cannot be enforced is an error, and an optional parameter that
    cannot be written.

    Raises:
        ConfigError: the tool's name, or a required parameter, cannot be written so; or the parameters are no schema.
    """
    assert format.tags is not None
    return _Writer(name, parameters, format, format.tags, strict).call(rule)


@dataclass
class _Writer:
    name: str
    parameters: Mapping[str, Any]
    format: ToolFormat
    tags: Tags
    strict: bool

    def call(self, rule: str) -> list[str]:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"The tool's name {self.name!r} has characters that cannot stand in a call as this model writes it, in "
                "tags. Use letters, digits, '_', '-' and '.'."
            )
        schema = resolve_reference(self.parameters, self.parameters)
        if self.strict and (others := sorted(schema.keys() - _OF_ALL)):
            raise self._problem(f"{others[0]!r} cannot be enforced of all parameters of a call in tags")
        named, required = schema.get("properties", {}), schema.get("required", ())
        if not isinstance(named, Mapping) or not isinstance(required, (list, tuple)):
            raise self._problem("properties is a mapping, and required a list")
        properties = {key: {} for key in required if key not in named} | {**named}
        lark = self.format.lark
        rules, arguments = [], []
        for i, (key, value) in enumerate(properties.items()):
            if value is False:
                continue
            argument, is_required = f"{rule}_{i}", key in required
            try:
                rules += self._argument(argument, self._key(key), value)
            except ConfigError:
                if is_required or self.strict:
                    raise
                continue
            arguments.append(argument if is_required else f"{argument}?")
        more = schema.get("additionalProperties", "properties" not in schema)
        most = schema.get("maxProperties", math.inf) - len(properties)
        if more is not False and most > 0:
            known = f" & ~/{'|'.join(map(_regex, properties))}/" if properties else ""
            rules += self._argument(f"{rule}_more", f"{rule}_key", more)
            rules += [f"{rule}_key: {rule.upper()}_KEY", f"{rule.upper()}_KEY: /{_KEY.pattern}/{known}"]
            arguments.append(f"{rule}_more{{0,{'' if most == math.inf else most}}}")
        head = f"{lark(self.tags.before_name)} {lark_string(self.name)} {lark(self.tags.behind_name)}"
        return [f"{rule}: {head} {' '.join(arguments)} {lark(self.tags.end)}", *rules]

    def _key(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise self._problem(f"the name {key!r} cannot stand between tags")
        return lark_string(key)

    def _argument(self, rule: str, key: str, schema: object) -> list[str]:
        lark, tags = self.format.lark, self.tags
        head = f"{rule}: {lark(tags.before_key)} {key} {lark(tags.behind_key)}"
        return [f"{head} {rule}_value {lark(tags.behind_value)}", *self._value(f"{rule}_value", schema)]

    def _value(self, rule: str, schema: object) -> list[str]:
        """Return the rules of a value up to the tag that ends it."""
        form = value_form(schema, self.parameters)
        kinds = {kind for kind, _ in form.others}
        ways = [self._word(word) for text in form.texts for word in text.get("enum", ()) if self._can_stand(word)]
        ways += [self._word("null")] if "null" in kinds else []
        if others := [other for kind, other in form.others if kind != "null"]:
            ways.append(f"%json {self._json(others)} {self._end}")
        rules = []
        is_beside_brackets = not kinds.isdisjoint(("array", "object"))
        for i, text in enumerate([{}] if form.is_any else [text for text in form.texts if "enum" not in text]):
            rules += self._text(f"{rule}_{i}", text, is_beside_brackets)
            ways.append(f"{rule}_{i}")
        if not ways:
            raise self._problem("no value of a parameter can stand between tags")
        return [f"{rule}: {' | '.join(ways)}", *rules]

    @property
    def _is_token(self) -> bool:
        return self.tags.value_end in self.format.control_ids

    @property
    def _end(self) -> str:
        return self.format.lark(self.tags.value_end)

    def _word(self, word: str) -> str:
        """Write a value in one piece with its end: where a text may stand too, the longest piece counts."""
        return f"{lark_string(word)} {self._end}" if self._is_token else lark_string(word + self.tags.value_end)

    def _can_stand(self, word: str) -> bool:
        before = "\n" if self.tags.has_lines else ""
        return f"{before}{word}{self.tags.value_end}".find(self.tags.value_end) == len(before + word)

    def _json(self, schemas: Sequence[Mapping[str, Any]]) -> str:
        value = {**schemas[0]} if len(schemas) == 1 else {"anyOf": schemas}
        value["x-guidance"] = self.parameters["x-guidance"]
        text = json.dumps(value, ensure_ascii=False)
        if not _REFERENCE.search(text):
            return text
        whole = json.dumps({**value, "$defs": {"all": self.parameters}}, ensure_ascii=False)
        return _REFERENCE.sub('"$ref": "#/$defs/all', whole)

    def _text(self, rule: str, schema: Mapping[str, Any], is_beside_brackets: bool) -> list[str]:
        """Return the rules of a text up to the tag that ends it, as that or, where it is one, as a token.

        is_beside_brackets: what looks like a list or an object is one.
        """
        if self.strict:
            self._check_text(schema)
        end, terminal = _regex(self.tags.value_end), rule.upper()
        parts = (schema, *(part for part in schema.get("allOf") or () if isinstance(part, Mapping)))
        matches = [length for part in parts for length in self._length(part, is_beside_brackets)]
        counted = max(part.get("maxLength", part.get("minLength", 0)) for part in parts)
        patterns = [match for part in parts for match in self._pattern(part.get("pattern"), counted)]
        matches = matches + patterns or ["(?s:.*)"]
        never = [f"{_regex(self.tags.value_end.lstrip())}(?s:.*)"] if self.tags.has_lines else []
        never += [f"(?s:.*){end}(?s:.+)"] if patterns else []
        # One negation, as llguidance follows several only so far.
        ended = [*(f"/(?:{match}){end}/" for match in matches), *([f"~/{'|'.join(never)}/"] if never else [])]
        rules = [f"{rule}_end[lazy]: {terminal}_END", f"{terminal}_END: {' & '.join(ended)}"]
        if not self._is_token:
            return [f"{rule}: {rule}_end", *rules]
        whole = " & ".join(f"/{match}/" for match in matches)
        return [f"{rule}: {rule}_end | {terminal} {self._end}", *rules, f"{terminal}: {whole}"]

    def _length(self, schema: Mapping[str, Any], is_beside_brackets: bool) -> list[str]:
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if not all(isinstance(length, int) or length == math.inf for length in (least, most)) or least > most:
            raise self._problem(f"a text has at least {least!r} and at most {most!r} characters")
        if (least, most) == (0, math.inf) and not is_beside_brackets:
            return []
        # What a text must have at least has no beginning of an end in it: so much is easily followed.
        first = _regex(self.tags.value_end[0])
        opening = rf"[^ \t\r\n\[{{{first if least else ''}]" if is_beside_brackets else "(?s:.)"
        inside = max(least - 1, 0)
        rest = f"[^{first}]{{{inside}}}(?s:.{{0,{'' if most == math.inf else most - inside - 1}}})"
        if least == 0:
            return [f"(?:{opening}{rest})?" if most > 0 else ""]
        return [f"{opening}{rest}" if is_beside_brackets else f"[^{first}]{rest}"]

    def _check_text(self, schema: Mapping[str, Any]) -> None:
        keyword = next((key for key in _NOT_OF_TEXT if key in schema), None)
        if keyword and not (keyword == "format" and '"pattern"' in json.dumps(schema)):
            raise self._problem(f"{keyword!r} cannot be enforced in a text between tags")

    def _pattern(self, pattern: object, counted: int) -> list[str]:
        """Return a pattern of JSON schemas, which may match anywhere, as one of the whole text.

        counted: of how many characters a bound is; pattern and bound together are followed only so far.
        """
        if not isinstance(pattern, str):
            return []
        match = "|".join(map(_whole, _alternatives(pattern)))
        if counted <= _MOST_COUNTED and _compiles(match):
            return [match]
        if self.strict:
            raise self._problem(f"the pattern {pattern!r} cannot be enforced in a text between tags")
        return []

    def _problem(self, problem: str) -> ConfigError:
        return ConfigError(f"The parameters of the tool {self.name!r} cannot be enforced: {problem}.")


def _alternatives(pattern: str) -> list[str]:
    """Part a regular expression where it says "or" outside of all brackets."""
    parts, depth = [""], 0
    spelled = re.sub(r"\\.|[/\n]", lambda found: _SPELLED.get(found[0], found[0]), pattern, flags=re.DOTALL)
    for piece in re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", spelled, re.DOTALL):
        depth += (piece == "(") - (piece == ")")
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


def _regex(text: str) -> str:
    return "".join(_SPELLED.get(char) or re.escape(char) for char in text)


def _compiles(regex: str) -> bool:
    if importlib.util.find_spec("llguidance") is None:
        return True  # which the matcher says
    from llguidance import LLMatcher

    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: /{regex}/"))

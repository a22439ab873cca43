"""The grammar of a tool call in tags."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgelm.errors import ConfigError
from edgelm.structure.constraint import lark_string
from edgelm.structure.raw_text import RawText, regex, unenforceable
from edgelm.structure.tagged_values import NOTES, others_of, resolve_reference, value_form
from edgelm.structure.tool_formats import Tags, ToolFormat

_OF_ALL = {"type", "properties", "required", "additionalProperties", *NOTES}
_KEY = re.compile(r"[^\s<>](?:[^<>\n]{0,254}[^\s<>])?")
# As JSON and as Python have them: Qwen3.5's template writes Python's, and a model kept from those may choose wrongly.
_SPELLED = {"boolean": ("true", "false", "True", "False"), "null": ("null", "None")}
_REFERENCE = re.compile(r'"\$ref": "#')


def tagged_call(rule: str, name: str, parameters: Mapping[str, Any], format: ToolFormat, *, strict: bool) -> list[str]:
    """Return the rules of a Lark grammar, `rule` the first, for calls of one tool in the format's tags.

    The parameters stand in the schema's order, and those that are not required may be left out; behind them stand
    others, where it allows them. A text stands as it is, as far as its reader does not take it for its end, or for a
    list; any other value is JSON. strict: whether what cannot be enforced is an error, and an optional parameter that
    cannot be written.

    Raises:
        ConfigError: a required parameter cannot be written so; or the parameters are no schema.
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
        schema = resolve_reference(self.parameters, self.parameters)
        if self.strict and (others := sorted(schema.keys() - _OF_ALL)):
            raise unenforceable(self.name, f"{others[0]!r} cannot be enforced of all parameters of a call in tags")
        named, required = schema.get("properties", {}), schema.get("required", ())
        if not isinstance(named, Mapping) or not isinstance(required, (list, tuple)):
            raise unenforceable(self.name, "properties is a mapping, and required a list")
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
        more = others_of(schema)
        most = schema.get("maxProperties", math.inf) - len(properties)
        if more is not False and most > 0:
            known = f" & ~/{'|'.join(map(regex, properties))}/" if properties else ""
            rules += self._argument(f"{rule}_more", f"{rule}_key", more)
            rules += [f"{rule}_key: {rule.upper()}_KEY", f"{rule.upper()}_KEY: /{_KEY.pattern}/{known}"]
            arguments.append(f"{rule}_more{{0,{'' if most == math.inf else most}}}")
        head = f"{lark(self.tags.before_name)} {lark_string(self.name)} {lark(self.tags.behind_name)}"
        return [f"{rule}: {head} {' '.join(arguments)} {lark(self.tags.end)}", *rules]

    def _key(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise unenforceable(self.name, f"the name {key!r} cannot stand between tags")
        return lark_string(key)

    def _argument(self, rule: str, key: str, schema: object) -> list[str]:
        lark, tags = self.format.lark, self.tags
        head = f"{rule}: {lark(tags.before_key)} {key} {lark(tags.behind_key)}"
        return [f"{head} {rule}_value {lark(tags.behind_value)}", *self._value(f"{rule}_value", schema)]

    def _value(self, rule: str, schema: object) -> list[str]:
        """Return the rules of a value up to the tag that ends it."""
        form = value_form(schema, self.parameters)
        kinds = {kind for kind, _ in form.others}
        end = self.format.lark(self.tags.value_end)
        token = end if self.tags.value_end in self.format.control_ids else ""
        raw = RawText(tool=self.name, end=self.tags.value_end, token=token, strict=self.strict)
        ways = [raw.word(word) for text in form.texts for word in text.get("enum", ()) if raw.can_be(word)]
        others = []
        for kind, other in form.others:
            spelled = _SPELLED.get(kind, ())
            if spelled and "const" in other:
                spelled = (json.dumps(other["const"]),)
            ways += map(raw.word, spelled)
            others += [] if spelled else [other]
        if others:
            ways.append(f"%json {self._json(others)} {end}")
        rules = []
        is_beside_brackets = not kinds.isdisjoint(("array", "object"))
        open_texts = [{}] if form.is_any else [text for text in form.texts if "enum" not in text]
        for i, text in enumerate(open_texts):
            rules += raw.rules(f"{rule}_{i}", text, is_beside_brackets=is_beside_brackets)
            ways.append(f"{rule}_{i}")
        if not ways:
            raise unenforceable(self.name, "no value of a parameter can stand between tags")
        return [f"{rule}: {' | '.join(ways)}", *rules]

    def _json(self, schemas: Sequence[Mapping[str, Any]]) -> str:
        value = {**schemas[0]} if len(schemas) == 1 else {"anyOf": schemas}
        value["x-guidance"] = self.parameters["x-guidance"]
        text = json.dumps(value, ensure_ascii=False)
        if not _REFERENCE.search(text):
            return text
        whole = json.dumps({**value, "$defs": {"all": self.parameters}}, ensure_ascii=False)
        return _REFERENCE.sub('"$ref": "#/$defs/all', whole)

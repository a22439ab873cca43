"""The grammar of a tool call with strings between marks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgelm.errors import ConfigError
from edgelm.structure.constraint import lark_string
from edgelm.structure.python_call import in_order
from edgelm.structure.raw_text import RawText, regex, unenforceable
from edgelm.structure.tagged_values import NOTES, kinds_in_both, kinds_of, others_of, resolved, said_twice, values_of
from edgelm.structure.tool_formats import ToolFormat

_KEY = re.compile(r"[^\s,:{}\[\]<>\"']{1,256}")
_ENFORCED = {
    "object": {"type", "nullable", "properties", "required", "additionalProperties", *NOTES},
    "array": {"type", "nullable", "items", "minItems", "maxItems", *NOTES},
}
_OF_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def marked_call(rule: str, name: str, parameters: Mapping[str, Any], format: ToolFormat, *, strict: bool) -> list[str]:
    """Return the rules of a Lark grammar, `rule` the first, for calls of one tool: `call:name{key:value,…}`.

    The properties of an object stand in the order of their names, as the templates write them, and those that are not
    required may be left out. strict: whether what cannot be enforced is an error, and an optional property that cannot
    be written.

    Raises:
        ConfigError: a required property cannot be written so; or the parameters are no schema.
    """
    token = format.lark(format.quote) if format.quote in format.control_ids else ""
    text = RawText(tool=name, end=format.quote, token=token, strict=strict)
    writer = _Writer(name, parameters, format, text, strict, rule)
    parts = writer.of_object(f"{rule}_all", resolved(parameters, parameters))
    return [f"{rule}: {lark_string(f'call:{name}')} {rule}_all", *parts, *writer.rules]


@dataclass
class _Writer:
    name: str
    parameters: Mapping[str, Any]
    format: ToolFormat
    text: RawText
    strict: bool
    prefix: str
    rules: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)  # the rules of schemas

    def value(self, schema: object) -> str:
        """Return the name of the rule of a value."""
        schema = resolved(schema, self.parameters)
        key = json.dumps(schema, sort_keys=True)
        if key not in self.known:
            rule = self.known[key] = f"{self.prefix}_v{len(self.known)}"
            ways = list(self._ways(rule, schema))
            if not ways:
                raise unenforceable(self.name, "no value of a property can be written")
            self.rules.append(f"{rule}: {' | '.join(ways)}")
        return self.known[key]

    def _ways(self, rule: str, schema: Mapping[str, Any]) -> Iterator[str]:
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                rest = {name: value for name, value in schema.items() if name != key}
                for part in (resolved(part, self.parameters) for part in schema[key]):
                    kinds, twice = kinds_in_both(rest, part), said_twice(rest, part)
                    if self.strict and twice:
                        raise unenforceable(self.name, f"{twice[0]!r} stands beside {key!r} and in it")
                    if kinds != []:
                        yield self.value({**rest, **part} | ({} if kinds is None else {"type": kinds}))
                return
        if "const" in schema or isinstance(schema.get("enum"), list):
            yield from map(self._written, values_of(schema))
            return
        for kind in kinds_of(schema, self.parameters) or ("string", "number", "boolean", "null", "array", "object"):
            name = f"{rule}_{kind}"
            if kind == "string":
                yield f"{self.format.lark(self.format.quote)} {name}"
                self.rules += self.text.rules(name, schema)
            elif kind in ("integer", "number"):
                bounds = {key: schema[key] for key in _OF_NUMBERS if key in schema}
                yield f"%json {json.dumps({'type': kind, **bounds, 'x-guidance': self.parameters['x-guidance']})}"
            elif kind in ("array", "object"):
                yield name
                self.rules += self.of_object(name, schema) if kind == "object" else self._array(name, schema)
            else:
                yield '"null"' if kind == "null" else '"true" | "false"'

    def _array(self, rule: str, schema: Mapping[str, Any]) -> list[str]:
        self._check(schema, "array")
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return [f'{rule}: "[" "]"']
        item = self.value(schema.get("items", {}))
        more = f'("," {item}){{{max(least - 1, 0)},{"" if most is None else most - 1}}}' if most != 1 else ""
        return [f'{rule}: "[" {item} {more} "]"' + ("" if least else ' | "[" "]"')]

    def of_object(self, rule: str, schema: Mapping[str, Any]) -> list[str]:
        """Return the rules, `rule` the first, of an object."""
        self._check(schema, "object")
        named, required = schema.get("properties", {}), schema.get("required", ())
        if not isinstance(named, Mapping) or not isinstance(required, (list, tuple)):
            raise unenforceable(self.name, "properties is a mapping, and required a list")
        items = []
        for key in sorted({*named, *required}, key=str.lower):
            try:
                if (value := named.get(key, {})) is not False:
                    items.append((f"{self._key(key)} {self.value(value)}", key in required))
            except ConfigError:
                if key in required or self.strict:
                    raise
        more = others_of(schema)
        rules = [f'{rule}: "{{" {rule}_first_0 "}}"', *in_order(rule, items, ",")]
        last = len(items)
        if more is False:
            return [*rules, f'{rule}_first_{last}: ""', f'{rule}_next_{last}: ""']
        pair = f"{rule}_key {self.value(more)}"
        known = f" & ~/{'|'.join(map(regex, named))}/" if named else ""
        return [
            *rules,
            f'{rule}_first_{last}: "" | {pair} ("," {pair})*',
            f'{rule}_next_{last}: ("," {pair})*',
            f'{rule}_key: {rule.upper()}_KEY ":"',
            f"{rule.upper()}_KEY: /{_KEY.pattern}/{known}",
        ]

    def _key(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise unenforceable(self.name, f"the name {key!r} cannot stand before a colon")
        return lark_string(f"{key}:")

    def _check(self, schema: Mapping[str, Any], kind: str) -> None:
        others = sorted(schema.keys() - _ENFORCED[kind])
        if self.strict and others:
            raise unenforceable(self.name, f"{others[0]!r} cannot be enforced in a call with strings between marks")

    def _written(self, value: object) -> str:
        if isinstance(value, str):
            return f"{self.format.lark(self.format.quote)} {self.text.word(value)}"
        if isinstance(value, Mapping):
            pairs = (f"{self._key(key)} {self._written(value[key])}" for key in sorted(value, key=str.lower))
            return f'"{{" {self._joined(pairs)} "}}"'
        if isinstance(value, (list, tuple)):
            return f'"[" {self._joined(map(self._written, value))} "]"'
        return lark_string(json.dumps(value))

    def _joined(self, parts: Iterator[str]) -> str:
        return ' "," '.join(parts)

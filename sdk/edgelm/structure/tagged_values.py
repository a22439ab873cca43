"""ValueForm: what the text between the tags of an argument may be, by the tool's schema, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from edgelm.structure.python_call_reader import read_literal

_KINDS = {dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean"}
_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "object": {"properties", "required", "additionalProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_UNLIKE_TEXT = ("array", "object", "null")
_DEEPEST = 16


@dataclass(frozen=True)
class ValueForm:
    """Tell an argument that is text as it stands from one that is JSON, since tags have both without quotes.

    texts: the schemas of the strings that it may be. others: those of what else it may be, each with its kind. Where
    both are empty, the schema says nothing.

    A parameter that is a string says what stands there, digits and all. Where a schema allows others too, vLLM takes
    JSON before text, SGLang and llama.cpp take text. Here a number or a boolean is text, which keeps what was written;
    but a whole list or object, or null, is what it looks like, since the text of it is hardly ever meant. Where the
    schema says nothing, or knows no such parameter, JSON is JSON, as for llama.cpp, and for vLLM and SGLang with GLM.
    What should be JSON and is none is read as Python writes it, as some templates do (`True`); else it is text, as for
    vLLM.
    """

    texts: Sequence[Mapping[str, Any]] = ()
    others: Sequence[tuple[str, Mapping[str, Any]]] = ()

    @property
    def is_text(self) -> bool:
        """Whether it is text whatever stands there."""
        return bool(self.texts) and not self.others

    @property
    def is_any(self) -> bool:
        """Whether the schema says nothing."""
        return not self.texts and not self.others

    @cached_property
    def has_open_text(self) -> bool:
        """Whether it may be text beside that of a list."""
        return any("enum" not in schema for schema in self.texts)

    def read(self, text: str) -> str:
        """Return as JSON what a text says."""
        words = json.dumps(text, ensure_ascii=False)
        if self.is_text or any(text in schema.get("enum", ()) for schema in self.texts):
            return words
        value = _json_of(text)
        if value is None and (not self.has_open_text or text == "None"):
            value = read_literal(text)
        if value is None or (self.has_open_text and _kind(json.loads(value)) not in dict(self.others)):
            return words
        return value


def value_form(schema: object, parameters: Mapping[str, Any], depth: int = 0) -> ValueForm:
    """Return the form of a parameter. parameters: the schema of all, which that of one may refer to."""
    schema = resolved(schema, parameters)
    if depth > _DEEPEST:
        return ValueForm()
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            rest = {name: value for name, value in schema.items() if name != key}
            parts = (resolved(part, parameters) for part in schema[key])
            return _either([value_form({**rest, **part}, parameters, depth + 1) for part in parts])
    if "const" in schema or isinstance(schema.get("enum"), list):
        values = [schema["const"]] if "const" in schema else schema["enum"]
        words = [value for value in values if isinstance(value, str)]
        others = [(_kind(value), {"const": value}) for value in values if not isinstance(value, str)]
        return ValueForm([{"enum": words}] if words else [], others)
    kinds = kinds_of(schema, parameters)
    return _either(
        [
            ValueForm([schema]) if kind == "string" else ValueForm(others=[(kind, {**schema, "type": kind})])
            for kind in kinds
        ]
    )


def resolve_reference(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with that in the place of its `$ref` which it names, as far as that is there."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            break
        target: Any = parameters
        for name in re.findall("/([^/]*)", reference):
            name = unquote(name).replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, Mapping) else None
        if not isinstance(target, Mapping):
            break
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def resolved(schema: object, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema without a reference, or an `allOf` of one, around it."""
    if not isinstance(schema, Mapping):
        return {}
    schema = resolve_reference(schema, parameters)
    parts = schema.get("allOf")
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping):
        part = resolve_reference(parts[0], parameters)
        if part.keys().isdisjoint(schema):
            return {**part, **{key: value for key, value in schema.items() if key != "allOf"}}
    return schema


def _either(forms: Sequence[ValueForm]) -> ValueForm:
    if any(form.is_any for form in forms):
        return ValueForm()
    either = ValueForm(
        [text for form in forms for text in form.texts], [other for form in forms for other in form.others]
    )
    if either.has_open_text:
        return ValueForm(either.texts, [other for other in either.others if other[0] in _UNLIKE_TEXT])
    return either


def kinds_of(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Sequence[str]:
    """Return the kinds of values that a schema names; none: it says nothing."""
    kinds = schema.get("type")
    if isinstance(kinds, str):
        kinds = [kinds]
    if isinstance(kinds, list):
        return kinds if all(kind == "null" or kind in _KINDS.values() for kind in kinds) else ()
    of_parts = (kinds_of(resolved(part, parameters), parameters) for part in schema.get("allOf") or ())
    named = [kind for kind, keywords in _KEYWORDS.items() if not keywords.isdisjoint(schema)]
    return next(filter(None, of_parts), named[:1])


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def _json_of(text: str) -> str | None:
    """Return the text of a JSON value without the white space around it; None: it is none."""
    try:
        json.loads(text, parse_constant=lambda name: int(name))  # NaN and Infinity are none
    except (ValueError, RecursionError):
        return None
    return text.strip()

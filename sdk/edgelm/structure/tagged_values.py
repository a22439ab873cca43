"""ValueForm: what the text between the tags of an argument may be, by the tool's schema, and what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgelm.structure.python_call_reader import read_literal
from edgelm.structure.schema_depth import target_of

# What a schema says that forbids no value.
NOTES = {
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "x-guidance",
}  # fmt: skip
_KINDS = {dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean"}
_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "object": {"properties", "required", "additionalProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_OF_NAMES = {"properties", "additionalProperties", "patternProperties"}  # each of which says what the others mean
_UNLIKE_TEXT = ("array", "object", "null")
_DEEPEST = 16  # of references to references
_MOST_BRANCHES = 256  # of all that a schema may be


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


def value_form(schema: object, parameters: Mapping[str, Any]) -> ValueForm:
    """Return the form of a parameter. parameters: the schema of all, which that of one may refer to."""
    texts: list[Mapping[str, Any]] = []
    others: list[tuple[str, Mapping[str, Any]]] = []
    waiting, steps = [resolved(schema, parameters)], 0
    while waiting:
        part, steps = waiting.pop(0), steps + 1
        branches = next((key for key in ("anyOf", "oneOf") if isinstance(part.get(key), list)), None)
        if branches is not None:
            rest = {name: value for name, value in part.items() if name != branches}
            joined = (with_branch(rest, resolved(branch, parameters)) for branch in part[branches])
            waiting = [branch for branch in joined if branch is not None] + waiting
        elif "const" in part or isinstance(part.get("enum"), list):
            values = values_of(part)
            words = [value for value in values if isinstance(value, str)]
            texts += [{"enum": words}] if words else []
            others += [(_kind(value), {"const": value}) for value in values if not isinstance(value, str)]
        else:
            kinds = kinds_of(part, parameters)
            texts += [part] if "string" in kinds else []
            others += [(kind, {**part, "type": kind}) for kind in kinds if kind != "string"]
            if not kinds:
                return ValueForm()
        if steps > _MOST_BRANCHES:
            return ValueForm()
    form = ValueForm(texts if texts or others else [{"enum": []}], others)  # without any, it would be anything
    return ValueForm(texts, [other for other in others if other[0] in _UNLIKE_TEXT]) if form.has_open_text else form


def resolve_reference(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema with that in the place of its `$ref` which it names, as far as that is there."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#"):
            break
        target = target_of(parameters, reference)
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


def with_branch(schema: Mapping[str, Any], branch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a value is that fits a schema and a branch of its `anyOf`; None: no value does."""
    kinds = kinds_in_both(schema, branch)
    if kinds == []:
        return None
    both = {**schema, **branch} | ({} if kinds is None else {"type": kinds})
    if not said_twice(schema, branch):
        return both
    notes = {key: value for key, value in both.items() if key in NOTES or key == "type"}
    said = [{key: value for key, value in part.items() if key not in ("allOf", "type")} for part in (schema, branch)]
    return {**notes, "allOf": [*said, *parts_of(schema), *parts_of(branch)]}


def said_twice(schema: Mapping[str, Any], branch: Mapping[str, Any]) -> list[str]:
    """List the keywords that two schemas both have, one of them otherwise, besides those that name types or values."""
    own, other = ({*part} | (_OF_NAMES if _OF_NAMES & part.keys() else set()) for part in (schema, branch))
    shared = sorted((own & other & (schema.keys() | branch.keys())) - NOTES - {"type", "enum", "const"})
    return [key for key in shared if schema.get(key) != branch.get(key)]


def kinds_in_both(schema: Mapping[str, Any], branch: Mapping[str, Any]) -> list[str] | None:
    """Return the kinds of values that two schemas both name; None: one of them names none."""
    if "type" not in schema or "type" not in branch:
        return None
    first, second = ([part["type"]] if isinstance(part["type"], str) else part["type"] for part in (schema, branch))
    if not (isinstance(first, list) and isinstance(second, list)):
        return None
    return [kind for kind in first if kind in second or (kind == "integer" and "number" in second)] + [
        "integer" for kind in second if kind == "integer" and "number" in first and "integer" not in first
    ]


def values_of(schema: Mapping[str, Any]) -> list[Any]:
    """Return the values that a schema lists, as far as they are of its types."""
    values = [schema["const"]] if "const" in schema else schema["enum"]
    types = schema.get("type")
    kinds = [types] if isinstance(types, str) else types
    if not isinstance(kinds, list):
        return list(values)
    return [value for value in values if not {_kind(value), *_kinds_of_number(value)}.isdisjoint(kinds)]


def kinds_of(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> Sequence[str]:
    """Return the kinds of values that a schema names; none: it says nothing."""
    parts = [schema, *(resolved(part, parameters) for part in parts_of(schema))]
    types = [part["type"] for part in parts if "type" in part]
    if types:
        named = [types[0]] if isinstance(types[0], str) else types[0]
        is_known = isinstance(named, list) and all(kind == "null" or kind in _KINDS.values() for kind in named)
        return named if is_known else ()
    said = {key for part in parts for key in part}
    return [kind for kind, keywords in _KEYWORDS.items() if not keywords.isdisjoint(said)][:1]


def others_of(schema: Mapping[str, Any]) -> Any:
    """Return the schema of properties that a schema does not name, False where there are none: for those that it knows
    by a pattern too, whose names are left to the model.
    """
    more = schema.get("additionalProperties", "properties" not in schema)
    matched = schema.get("patternProperties")
    ways = [way for way in matched.values() if way is not False] if isinstance(matched, Mapping) else []
    if not ways:
        return more
    ways += [] if more is False else [more]
    return ways[0] if len(ways) == 1 else {"anyOf": ways}


def parts_of(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the schemas that all hold besides."""
    parts = schema.get("allOf")
    return [part for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def _kinds_of_number(value: object) -> tuple[str, ...]:
    is_whole = isinstance(value, float) and value.is_integer()
    return ("integer", "number") if is_whole else ("number",) if _kind(value) == "integer" else ()


def _json_of(text: str) -> str | None:
    """Return the text of a JSON value without the white space around it; None: it is none."""
    try:
        json.loads(text, parse_constant=lambda name: int(name))  # NaN and Infinity are none
    except (ValueError, RecursionError):
        return None
    return text.strip()

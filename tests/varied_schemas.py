"""Varied JSON schemas, from a seed, to test structured output with: small ones, so that answers are short."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = (
    "name",
    "age",
    "city",
    "price",
    "tags",
    "kind",
    "is_open",
    "first name",
    "größe",
    "e-mail",
    "x",
    "notes",
    "日付",
)
_WORDS = ("red", "green", "deep blue", "none", 'a "quoted" word', "naïve", "日本", "1", "true", "a/b\\c")
_FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_PATTERNS = (
    r"^[A-Z][a-z]{2,6}$",
    r"^\d{3}-\d{4}$",
    r"^(cat|dog)s?$",
    r"^[^\s@]{1,6}@[a-z]{2,5}\.org$",
    r"[0-9a-f]{4}",
    r"^ab?c*$",
)
# Keywords that assert something and that the compiler does not know: each has to be named by the error.
UNSUPPORTED: tuple[tuple[str, Schema], ...] = (
    ("uniqueItems", {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
    ("contains", {"type": "array", "contains": {"const": 1}}),
    ("not", {"not": {"type": "string"}}),
    ("if", {"if": {"type": "string"}, "then": {"minLength": 2}}),
    ("propertyNames", {"type": "object", "propertyNames": {"maxLength": 3, "pattern": "a"}}),
    ("dependentRequired", {"type": "object", "dependentRequired": {"a": ["b"]}}),
    ("dependentSchemas", {"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}),
    ("unevaluatedProperties", {"type": "object", "unevaluatedProperties": False}),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number", "maximum": 5}]}),
    ("format", {"type": "string", "format": "idn-email"}),
    ("pattern", {"type": "string", "pattern": "^(?=a)b"}),
)


def varied_schemas(count: int, seed: int = 0) -> list[Schema]:
    """Return `count` schemas; about one in fifteen has a keyword that cannot be enforced."""
    chooser = random.Random(seed)
    return [_whole(chooser) for _ in range(count)]


def _whole(chooser: random.Random) -> Schema:
    if chooser.random() < 0.07:
        return _object(chooser, 1) | {"properties": {"part": chooser.choice(UNSUPPORTED)[1]}, "required": ["part"]}
    if chooser.random() < 0.15:
        return _with_definitions(chooser)
    # Most schemas that people write are objects.
    return (_object if chooser.random() < 0.7 else _any)(chooser, 2)


def _any(chooser: random.Random, depth: int) -> Schema:
    makers: list[Callable[[random.Random, int], Schema]] = [
        _text, _text, _formatted, _pattern, _integer, _number, _enum, _const, _boolean, _nullable, _several_types
    ]  # fmt: skip
    if depth > 0:
        makers += [_object, _object, _array, _array, _tuple, _map, _any_of, _one_of, _all_of]
    schema = chooser.choice(makers)(chooser, depth)
    if chooser.random() < 0.1:  # annotations assert nothing
        schema |= {"title": "A part", "description": 'Says "what" it is.', "default": None, "examples": [1, "a"]}
    return schema


def _text(chooser: random.Random, depth: int) -> Schema:
    low = chooser.choice((0, 1, 3))
    return {"type": "string", "minLength": low, "maxLength": low + chooser.randint(0, 8)}


def _formatted(chooser: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": chooser.choice(_FORMATS)}


def _pattern(chooser: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": chooser.choice(_PATTERNS)}


def _integer(chooser: random.Random, depth: int) -> Schema:
    low = chooser.randint(-1000, 1000)
    bounds: tuple[Schema, ...] = (
        {"minimum": low, "maximum": low + chooser.randint(0, 300)},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + chooser.randint(2, 300)},
        {"minimum": 0, "maximum": 100, "multipleOf": chooser.choice((5, 7, 10))},
    )
    return {"type": "integer", **chooser.choice(bounds)}


def _number(chooser: random.Random, depth: int) -> Schema:
    low = round(chooser.uniform(-50, 50), chooser.randint(0, 3))
    bounds: tuple[Schema, ...] = (
        {"minimum": low, "maximum": low + 10.5},
        {"exclusiveMinimum": low, "maximum": low + 0.25},
        {"minimum": 0, "exclusiveMaximum": 1},
    )
    return {"type": "number", **chooser.choice(bounds)}


def _enum(chooser: random.Random, depth: int) -> Schema:
    values: list[Any] = chooser.sample(_WORDS, chooser.randint(1, 4))
    return {"enum": values + chooser.choice(([], [None], [3, 2.5], [True], [{"a": [1, "b"]}]))}


def _const(chooser: random.Random, depth: int) -> Schema:
    return {"const": chooser.choice((chooser.choice(_WORDS), 42, -1.5, False, None, [1, "two"], {"k": {"v": []}}))}


def _boolean(chooser: random.Random, depth: int) -> Schema:
    return {"type": "boolean"}


def _nullable(chooser: random.Random, depth: int) -> Schema:
    return {"type": ["string", "null"], "maxLength": 6}


def _several_types(chooser: random.Random, depth: int) -> Schema:
    types = chooser.sample(("string", "integer", "boolean", "null"), chooser.randint(2, 3))
    return {"type": types, "maxLength": 6, "minimum": 0, "maximum": 50}


def _object(chooser: random.Random, depth: int) -> Schema:
    names = chooser.sample(_NAMES, chooser.randint(1, 4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _any(chooser, depth - 1) for name in names},
        # Also in another order than the properties'.
        "required": chooser.sample(names, chooser.randint(0, len(names))),
        "additionalProperties": False,
    }
    if chooser.random() < 0.15:
        schema["additionalProperties"] = _integer(chooser, 0)
    return schema


def _array(chooser: random.Random, depth: int) -> Schema:
    low = chooser.choice((0, 0, 1, 2))
    return {
        "type": "array",
        "items": _any(chooser, depth - 1),
        "minItems": low,
        "maxItems": low + chooser.randint(0, 2),
    }


def _tuple(chooser: random.Random, depth: int) -> Schema:
    parts = [_any(chooser, depth - 1) for _ in range(chooser.randint(1, 3))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}


def _map(chooser: random.Random, depth: int) -> Schema:
    schema: Schema = {"type": "object", "additionalProperties": False}
    schema["patternProperties"] = {"^[a-z]{1,3}$": _boolean(chooser, 0), "^n_[0-9]$": _integer(chooser, 0)}
    return schema


def _any_of(chooser: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(chooser, depth - 1) for _ in range(chooser.randint(2, 3))]}


def _one_of(chooser: random.Random, depth: int) -> Schema:
    """Return a union of objects that a constant tells apart, as programs write it."""
    kinds = chooser.sample(("circle", "square", "line"), 2)
    options = []
    for kind in kinds:
        option = _object(chooser, depth - 1)
        option["properties"] = {"type": {"const": kind}, **option["properties"]}
        options.append(option | {"required": ["type", *option["required"]]})
    return {"oneOf": options}


def _all_of(chooser: random.Random, depth: int) -> Schema:
    parts = []
    for name in chooser.sample(_NAMES, 2):
        parts.append({"type": "object", "properties": {name: _any(chooser, 0)}, "required": [name]})
    return {"allOf": parts, "maxProperties": 4} if chooser.random() < 0.2 else {"allOf": parts}


def _with_definitions(chooser: random.Random) -> Schema:
    node: Schema = {
        "type": "object",
        "properties": {"value": _any(chooser, 0), "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
        "required": ["value", "next"] if chooser.random() < 0.5 else ["value"],
        "additionalProperties": False,
    }
    root: Schema = {
        "type": "object",
        "properties": {
            "label": {"$ref": "#/$defs/label"},
            "other": {"$ref": "#/$defs/label"},
            "head": {"$ref": "#/$defs/node"},
        },
        "required": ["label", "head"],
        "additionalProperties": False,
        "$defs": {"node": node, "label": _any(chooser, 1)},
    }
    return root if chooser.random() < 0.7 else {"$ref": "#/$defs/node", "$defs": {"node": node}}

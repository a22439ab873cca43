"""Schemas: one table describes each request; the same table checks it and is published in /openapi.json."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from edgelm.server.api_error import ApiError

# A JSON Schema, of the keywords that `check` knows: type, enum, minimum, maximum, minLength, maxLength, items,
# minItems, maxItems, properties, required, additionalProperties, anyOf; propertyNames is published alone, and what it
# says is checked by whoever reads the field.
Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
ANY: Schema = {}
ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}
# Refused fields, and the values with which they ask for nothing, besides empty ones: where that is true, false asks.
_OFF_AT: Mapping[str, object] = {
    "best_of": 1,
    "length_penalty": 1,
    "reasoning_format": "auto",
    "separate_reasoning": True,
    "skip_special_tokens": True,
    "tfs_z": 1,
    "verbosity": "medium",
}


def whole(low: int, high: int = 2**31) -> Schema:
    """Describe a whole number."""
    return {"type": "integer", "minimum": low, "maximum": high}


def number(low: float, high: float) -> Schema:
    """Describe a finite number."""
    return {"type": "number", "minimum": low, "maximum": high}


def choice(*values: str) -> Schema:
    """Describe one of some words."""
    return {"type": "string", "enum": list(values)}


def listing(items: Schema, *, most: int, fewest: int = 0) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}


def record(
    properties: Mapping[str, Schema],
    *,
    required: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
    refused: Mapping[str, str] | None = None,
    open_ended: bool = False,
) -> Schema:
    """Describe an object.

    ignored: fields that change no answer, taken and passed over. refused: fields that would change it, with what to
    say. open_ended: whether other fields are passed over too.
    """
    return {
        "type": "object",
        "properties": {**properties, **dict.fromkeys(ignored, ANY)},
        "required": list(required),
        "additionalProperties": open_ended,
        "x-refused": dict(refused or {}),
    }


_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "string": ("a text", (str,)),
    "integer": ("a whole number", (int,)),
    "number": ("a number", (int, float)),
    "boolean": ("true or false", (bool,)),
    "array": ("a list", (list,)),
    "object": ("an object", (dict,)),
}


def check(value: Any, schema: Schema, param: str = "") -> None:
    """Check a JSON value; `param` is its place in the request.

    A field that is null counts as not given, as in OpenAI's interface; so does a refused one that asks for nothing. A
    whole number may be written as 5.0, as programs do whose language has one kind of number; it becomes 5.

    Raises:
        ApiError: 400; its param is the place of the first value that does not fit.
    """
    if "anyOf" in schema:
        _check_any(value, schema["anyOf"], param)
        return
    if "type" not in schema:
        return
    words, kinds = _TYPES[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _misfit(param, value, f"it must be {words}")
    if "enum" in schema and value not in schema["enum"]:
        raise _misfit(param, value, f"it must be one of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if not low <= value <= high:
            raise _misfit(param, value, f"it must be from {low} to {high}")
    elif isinstance(value, (str, list)):
        _check_length(value, schema, param)
    elif isinstance(value, dict):
        _check_object(value, schema, param)


def _check_length(value: str | list[Any], schema: Schema, param: str) -> None:
    unit, suffix = ("characters", "Length") if isinstance(value, str) else ("items", "Items")
    low, high = schema.get(f"min{suffix}", 0), schema.get(f"max{suffix}", math.inf)
    if not low <= len(value) <= high:
        raise ApiError(400, f"{param} has {len(value)} {unit}; it must have {low} to {high}.", param=param)
    if isinstance(value, list):
        items = schema["items"]
        # A prompt can have 262,000 token ids: `check` is called only for what is no such number.
        whole_numbers = range(items["minimum"], items["maximum"] + 1) if items.get("type") == "integer" else ()
        for i, item in enumerate(value):
            if type(item) is not int or item not in whole_numbers:
                value[i] = item = _whole_if_meant(item, items)
                check(item, items, f"{param}[{i}]")


def _check_object(value: dict[str, Any], schema: Schema, param: str) -> None:
    inside = f"{param}." if param else ""
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    for name, item in value.items():
        if item is None:
            continue
        place = f"{inside}{name}"
        if name in properties:
            value[name] = item = _whole_if_meant(item, properties[name])
            check(item, properties[name], place)
        elif name in schema.get("x-refused", {}):
            # 0 is False, too. Clients that write every field ask for nothing with these.
            off = _OFF_AT.get(name)
            if item in (([], off) if off is True else ([], "", 0, off)):
                continue
            raise ApiError(400, f"{place[:80]} is not supported: {schema['x-refused'][name]}", param=place[:80])
        elif not others:
            raise ApiError(400, f"There is no field {place[:80]!r}; check its spelling.", param=place[:80])
        elif isinstance(others, Mapping):
            check(item, others, place[:80])
    need(value, param, *schema.get("required", ()))


def need(item: Mapping[str, Any], place: str, *names: str) -> None:
    """Check that an object of a request has these fields; `place` is where it stands there.

    Raises:
        ApiError: 400, one is missing.
    """
    for name in names:
        if item.get(name) is None:
            missing = f"{place}.{name}" if place else name
            raise ApiError(400, f"{missing} is missing.", param=missing)


def _whole_if_meant(value: Any, schema: Schema) -> Any:
    if not isinstance(value, float) or not value.is_integer():
        return value
    return int(value) if all(kind.get("type") == "integer" for kind in schema.get("anyOf", (schema,))) else value


def _check_any(value: Any, schemas: list[Schema], param: str) -> None:
    """Take the first schema that fits; else report the misfit of the schema that the value is most like."""
    misfits: list[tuple[int, ApiError]] = []
    for schema in schemas:
        try:
            check(value, schema, param)
            return
        except ApiError as error:
            misfits.append((_likeness(value, schema), error))
    raise max(misfits, key=lambda misfit: misfit[0])[1]


def _likeness(value: Any, schema: Schema) -> int:
    """Count to which depth the types of a value, and of the first items in it, are those of a schema."""
    if "type" not in schema or not isinstance(value, _TYPES[schema["type"]][1]):
        return 0
    return 1 + _likeness(value[0], schema["items"]) if isinstance(value, list) and value else 1


def _misfit(param: str, value: Any, rule: str) -> ApiError:
    # The beginning of it is enough, and the rest may be a megabyte.
    start = dict(itertools.islice(value.items(), 40)) if isinstance(value, dict) else value
    shown = repr(start[:41] if isinstance(start, (str, list)) else start)
    shown = shown if len(shown) <= 40 else f"{shown[:40]}…"
    return ApiError(400, f"{param or 'The request'} is {shown}; {rule}.", param=param or None)

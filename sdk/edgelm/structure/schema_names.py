"""Schema names: `propertyNames` of a JSON schema, which llguidance does not know, said in other words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgelm.structure.schema_depth import target_of

_NOTES = {"title", "description", "$comment", "default", "examples", "deprecated"}
_LENGTHS = {"minLength", "maxLength"}
# Of a name each has its own copy of what its value is; beyond, and where that is long, a pattern is for all of them.
_MOST_NAMES, _LONGEST_COPY = 256, 1024
_SIGN = re.compile(r"[][\\^$.|?*+(){}]")


def close_names(part: dict[str, Any], names: Any, whole: Mapping[str, Any]) -> None:
    """Say with `properties` or `patternProperties` what the `propertyNames` of a part are, as zod writes for each
    record, and pydantic for keys of an enum; what they cannot say stays.

    names: the part's own, as it was. whole: the schema that references in it are about.
    """
    if isinstance(names, Mapping) and names.keys() - _NOTES == {"$ref"} and str(names["$ref"]).startswith("#/"):
        names = target_of(whole, str(names["$ref"]))
    if "propertyNames" not in part or not _is_schema(names) or names is False:
        return
    said = {} if names is True else {key: value for key, value in names.items() if key not in _NOTES}
    if said.pop("type", "string") != "string":
        return
    if not said:
        del part["propertyNames"]
    elif "patternProperties" in part or not _is_schema(part.get("additionalProperties", True)):
        return
    elif said.keys() in ({"enum"}, {"const"}):
        _name_each(part, said["enum"] if "enum" in said else [said["const"]])
    elif "properties" not in part and (pattern := _pattern(said)) is not None:
        _match(part, pattern)


def _name_each(part: dict[str, Any], names: Any) -> None:
    given = part.get("properties", {})
    if not isinstance(names, (list, tuple)) or not isinstance(given, Mapping):
        return
    texts = dict.fromkeys(name for name in names if isinstance(name, str))
    properties = {name: schema if name in texts else False for name, schema in given.items()}
    others, new = part.get("additionalProperties", True), [name for name in texts if name not in given]
    if not new or (len(new) <= _MOST_NAMES and _is_short(others)):
        part["properties"] = properties | dict.fromkeys(new, others)
        part["additionalProperties"] = False
        del part["propertyNames"]
        return
    if "properties" in part:
        part["properties"] = properties
    alternatives = "|".join(_SIGN.sub(r"\\\g<0>", name) for name in new)
    _match(part, f"^(?:{alternatives})$")


def _match(part: dict[str, Any], pattern: str) -> None:
    part["patternProperties"] = {pattern: part.get("additionalProperties", True)}
    part["additionalProperties"] = False
    del part["propertyNames"]


def _pattern(said: Mapping[str, Any]) -> str | None:
    if said.keys() == {"pattern"} and isinstance(said["pattern"], str):
        return said["pattern"]
    if said.keys() <= _LENGTHS and all(isinstance(length, int) for length in said.values()):
        return rf"^[\s\S]{{{said.get('minLength', 0)},{said.get('maxLength', '')}}}$"
    return None


def _is_schema(value: Any) -> bool:
    return isinstance(value, (Mapping, bool))


def _is_short(schema: Any) -> bool:
    """Tell whether a schema can be copied: nothing that has parts, of which each may hold copies of others."""
    if isinstance(schema, bool):
        return True
    has_parts = any(isinstance(value, (Mapping, list, tuple)) for value in schema.values())
    return not has_parts and len(json.dumps(schema)) <= _LONGEST_COPY

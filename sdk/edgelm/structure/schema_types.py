"""Schema types: those that programs write into a tool's schema from annotations of Python, as JSON Schema has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.structure.schema_gaps import with_parts

_OF_PYTHON = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "tuple": "array",
    "set": "array", "dict": "object", "none": "null", "nonetype": "null",
}  # fmt: skip
_ANY = "any"


def in_json_types(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose types are JSON Schema's; `any` says nothing.

    Raises:
        TypeError: a key is no text.
    """
    result = with_parts(schema, in_json_types)
    kind = result.get("type")
    kinds = [_in_json(part) for part in (kind if isinstance(kind, (list, tuple)) else [kind])]
    if _ANY in kinds:
        del result["type"]
    elif "type" in result:
        result["type"] = kinds if isinstance(kind, (list, tuple)) else kinds[0]
    return result


def _in_json(kind: Any) -> Any:
    word = kind.lower() if isinstance(kind, str) else ""
    return _ANY if word == _ANY else _OF_PYTHON.get(word, kind)

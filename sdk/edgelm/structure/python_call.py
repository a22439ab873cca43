"""The grammar of a tool call as Python writes it, with values as JSON writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.structure.constraint import lark_string
from edgelm.structure.python_call_reader import NAME
from edgelm.structure.tagged_values import NOTES

_SHARED = ("$defs", "definitions")
# What a schema may say beside its properties where they are written one by one: nothing that holds for all of them.
_PLAIN = {"type", "properties", "required", "additionalProperties", *NOTES}
_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef)": "(?!#/(?:\$defs|definitions)/)')


def python_call(rule: str, name: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return the rules of a Lark grammar, `rule` the first, for calls of one tool: `name(parameter=value, …)`.

    The parameters stand in the schema's order, and those that are not required may be left out; none are made up
    beside them. Where that does not say all that the schema does, a call is `name(**{"parameter": value, …})`.
    """
    head = f"{rule}: {lark_string(name)}"
    properties: Any = parameters.get("properties")
    if not _is_plain(parameters, properties):
        return [f'{head} "(**" %json {_json(parameters)} ")"']
    required = parameters.get("required", ())
    style = {"x-guidance": parameters["x-guidance"]}
    shared = {key: parameters[key] for key in _SHARED if key in parameters}
    items = []
    for parameter, schema in properties.items():
        refers = shared if '"$' in _json(schema) else {}
        value = f"%json {_json({**schema, **refers, **style})}"
        items.append((f"{lark_string(f'{parameter}=')} {value}", parameter in required))
    ends = (f'{rule}_{place}_{len(items)}: ""' for place in ("first", "next"))
    return [f'{head} "(" {rule}_first_0 ")"', *in_order(rule, items, ", "), *ends]


def in_order(rule: str, items: Sequence[tuple[str, bool]], separator: str) -> list[str]:
    """Return the rules of items in this order, each with whether it must come, and something between each two.

    They begin with `{rule}_first_0`, and end with `{rule}_first_{len(items)}` where none has come, and with
    `{rule}_next_{len(items)}` where one has; what these are is for others to say.
    """
    rules = []
    for i, (item, is_required) in enumerate(items):
        rules.append(f"{rule}_{i}: {item}")
        for place, before in (("first", ""), ("next", f"{lark_string(separator)} ")):
            left_out = "" if is_required else f" | {rule}_{place}_{i + 1}"
            rules.append(f"{rule}_{place}_{i}: {before}{rule}_{i} {rule}_next_{i + 1}{left_out}")
    return rules


def _is_plain(parameters: Mapping[str, Any], properties: Any) -> bool:
    required = parameters.get("required", ())
    return (
        parameters.keys() <= _PLAIN
        and isinstance(properties, Mapping)
        and isinstance(required, (list, tuple))
        and set(map(str, required)) <= properties.keys()
        and all(NAME.fullmatch(name) and isinstance(schema, Mapping) for name, schema in properties.items())
        and not _REFERENCE.search(_json(parameters))
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)

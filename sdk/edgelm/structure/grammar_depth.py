"""Grammar depth: how far the rules of a grammar in Lark lead, which llguidance follows on the stack."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

from edgelm.errors import ConfigError
from edgelm.structure.schema_depth import MOST_LEVELS, refuse_depth, walk_in_depth

# One that nobody ends takes the rest: looked for anew at each escaped quote, 100 kB of them would take minutes.
_TEXT, _REGEX = r'"(?:\\.|[^"\\])*+(?:"|\\?\Z)', r"/(?:\\.|[^/\\])++(?:/|\\?\Z)"
_PART = re.compile(
    rf"{_TEXT}i?|(?://|\#)[^\n]*|{_REGEX}[a-z]*|<[^<>\s]+>|(?P<bracket>[()\[\]])|(?P<json>%(?:json|regex)\s*+(?={{))"
    # What stands between the name of a rule and its colon: a priority, attributes, a parameter.
    r"|(?P<name>[A-Za-z_][\w-]*+)"
    rf"(?P<head>\s*+(?:\.\s*+-?\d++\s*+)?+(?:\[(?:{_TEXT}|{_REGEX}|[^\[\]\"/])*+\]\s*+)?+(?:::\s*+_\s*+)?+:(?!:))?",
    re.DOTALL,
)


def refuse_grammar_depth(grammar: str) -> None:
    """Refuse rules that lead to others too many times, one inside of the other, and a schema in it that does.

    llguidance follows a rule where it first comes upon it, from `start` on, and never again. A pair of brackets counts
    as a rule. What is no grammar is left to llguidance, which names what is wrong.

    Raises:
        ConfigError: they do.
    """
    deepest = _deepest(*_read(grammar))
    if deepest > MOST_LEVELS:
        raise ConfigError(
            f"The grammar cannot be enforced: its rules lead {deepest} levels deep, one inside of the other; at most "
            f"{MOST_LEVELS} are followed. Write it with fewer steps from rule to rule. (In some models' formats each "
            "parameter of a tool is such a step.)"
        )


def _read(grammar: str) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return the names in each rule, in their order, and its levels: those of its brackets, and its own."""
    names: dict[str, list[str]] = {"start": []}
    levels = {"start": 1}
    rule, depth, place = "start", 1, 0
    while part := _PART.search(grammar, place):
        place = part.end()
        if part["head"]:
            rule, depth = part["name"], 1
            names.setdefault(rule, [])
            levels.setdefault(rule, depth)
        elif part["name"]:
            names[rule].append(part["name"])
        elif part["bracket"]:
            depth += 1 if part["bracket"] in "([" else -1
            levels[rule] = max(levels[rule], depth)
        elif part["json"]:
            try:
                schema, place = json.JSONDecoder().raw_decode(grammar, place)
            except (ValueError, RecursionError):
                break
            refuse_depth(schema)
    return names, levels


def _deepest(names: Mapping[str, Collection[str]], levels: Mapping[str, int]) -> int:
    """Return the most levels that lie above each other in a walk in depth, which enters each rule once."""
    deepest = depth = 0
    for rule, enters in walk_in_depth(names):
        depth += levels[rule] if enters else -levels[rule]
        deepest = max(deepest, depth)
    return deepest

"""Schema depth: how far references of a JSON schema lead, which llguidance follows on the stack, and in what rings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote

from edgelm.errors import ConfigError

# Levels of objects and lists. llguidance 1.9 takes up to 4 kB of the stack for each, and where that ends, the process
# does: at 2,000 levels of 8 MB; threads on Windows have 2 MB.
MOST_LEVELS = 384
_WHOLE = "#"
_PARTS = (Mapping, list, tuple)
_COMPOSED = ("allOf", "anyOf", "oneOf")  # what they list is about the same value

_Part = TypeVar("_Part", int, str)


def refuse_depth(schema: Mapping[str, Any]) -> None:
    """Refuse references that lead to others too many times, one inside of the other, or to nothing but themselves.

    llguidance follows each spelling of a reference once, in an order that is not known here. So parts that lead to each
    other in a circle count with all of their levels, once for each spelling.

    Raises:
        ConfigError: they do.
    """
    levels, places, references = _walked(schema)  # once, however many references lead into one another
    leads_to: dict[int, Collection[int]] = {}  # of the schema, and of each part that a reference leads to
    targets: dict[str, Any] = {}  # of the references
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if id(part) in leads_to:
            continue
        first, end = places.get(id(part), (0, 0))
        inside = set(references[first:end])
        new = {reference: target_of(schema, reference) for reference in inside if reference not in targets}
        targets |= new
        waiting += new.values()
        leads_to[id(part)] = {id(targets[reference]) for reference in inside}
    spellings = Counter(map(id, targets.values()))
    deepest = _longest_path(leads_to, {part: levels.get(part, 0) * max(1, spellings[part]) for part in leads_to})
    if deepest > MOST_LEVELS:
        raise ConfigError(
            f"The JSON schema cannot be enforced: its references lead {deepest} levels deep, one inside of the other; "
            f"at most {MOST_LEVELS} are followed. Write what they lead to in fewer steps."
        )
    _refuse_rings(targets)


def _refuse_rings(targets: Mapping[str, Any]) -> None:
    """Refuse references that lead back to themselves in every way: llguidance ends an answer where it comes to one."""
    parts: dict[int, Mapping[str, Any]] = {}
    waiting = [*targets.values()]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping) and id(part) not in parts:
            parts[id(part)] = part
            waiting += [other for key in _COMPOSED for other in _listed(part, key)]
    silent = parts.keys() - _saying(parts, targets)
    for reference, target in targets.items():
        if id(target) in silent:
            raise ConfigError(
                f"The JSON schema cannot be enforced: the reference {reference} leads back to itself before it says "
                "anything. Write there what may come, such as a type."
            )


def _saying(parts: Mapping[int, Mapping[str, Any]], targets: Mapping[str, Any]) -> set[int]:
    """Return which parts, by id, hold more than what leads to others of which none says anything.

    Each condition is looked at once: a client may send tens of thousands, and a chain of parts that waits for them.
    """
    unmet: dict[int, int] = {}
    met_by: dict[int, list[list[int]]] = {}  # conditions, each with the part that has it until it is met
    for part_id, part in parts.items():
        conditions = [others for others in _conditions(part, targets) if all(isinstance(o, Mapping) for o in others)]
        unmet[part_id] = len(conditions)
        for others in conditions:
            condition = [part_id]
            for other in others:
                met_by.setdefault(id(other), []).append(condition)
    saying: set[int] = set()
    waiting = [part_id for part_id, count in unmet.items() if not count]
    while waiting:
        saying.add(said := waiting.pop())
        for condition in met_by.get(said, ()):
            if condition:
                part_id = condition.pop()
                unmet[part_id] -= 1
                if not unmet[part_id]:
                    waiting.append(part_id)
    return saying


def _conditions(part: Mapping[str, Any], targets: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    """Yield the others that a part leads to: of each group, one has to say something."""
    reference = part.get("$ref")
    if isinstance(reference, str) and reference.startswith(_WHOLE + "/"):
        yield [targets[reference]]
    for key in _COMPOSED:
        if others := _listed(part, key):
            yield from ([other] for other in others) if key == "allOf" else (others,)


def _listed(part: Mapping[str, Any], key: str) -> list[Any] | tuple[Any, ...]:
    others = part.get(key)
    return others if isinstance(others, (list, tuple)) else ()


def target_of(schema: Mapping[str, Any], reference: str) -> Any:
    """Return what a JSON pointer leads to; of any other reference all that it may lead to, which is the whole.

    None: nothing is there, as llguidance says.
    """
    if not reference.startswith("#/"):
        return schema
    target: Any = schema
    for part in reference[2:].split("/"):
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping):
            target = target.get(name)
        elif isinstance(target, (list, tuple)) and name.isdecimal() and len(name) < 9 and int(name) < len(target):
            target = target[int(name)]
        else:
            return None
    return target


def _walked(schema: Any) -> tuple[dict[int, int], dict[int, tuple[int, int]], list[str]]:
    """Return of each object and list of a schema, by its id, how many levels of them it has, itself one, and from where
    to where the references in it stand among all, which come last.
    """
    levels: dict[int, int] = {}
    places: dict[int, tuple[int, int]] = {}
    references: list[str] = []
    waiting: list[tuple[Any, int | None]] = [(schema, None)]
    while waiting:
        part, first = waiting.pop()
        inner = [value for value in (part.values() if isinstance(part, Mapping) else part) if isinstance(value, _PARTS)]
        if first is not None:  # all that is in it is walked through
            levels[id(part)] = 1 + max((levels[id(value)] for value in inner), default=0)
            places[id(part)] = first, len(references)
            continue
        if isinstance(part, Mapping) and "$id" in part:  # for what it is in: from here on pointers begin elsewhere
            references.append(_WHOLE)
        waiting.append((part, len(references)))
        if isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
            references.append(part["$ref"])
        waiting += ((value, None) for value in inner)
    return levels, places, references


def _longest_path(graph: Mapping[int, Collection[int]], lengths: Mapping[int, int]) -> int:
    """Return the greatest sum of lengths along a path; of parts that lead to each other all count."""
    into: dict[int, list[int]] = {part: [] for part in graph}
    for part, others in graph.items():
        for other in others:
            into[other].append(part)
    before = dict.fromkeys(graph, 0)  # the longest path up to a part
    done: set[int] = set()
    longest = 0
    as_left = [part for part, enters in walk_in_depth(graph) if not enters]
    for start in reversed(as_left):  # Kosaraju: who leads to others comes before them
        if start in done:
            continue
        ring, waiting = {start}, [start]
        while waiting:
            new = {part for part in into[waiting.pop()] if part not in done} - ring
            ring |= new
            waiting += new
        done |= ring
        length = max(before[part] for part in ring) + sum(lengths[part] for part in ring)
        longest = max(longest, length)
        for other in {other for part in ring for other in graph[part]} - ring:
            before[other] = max(before[other], length)
    return longest


def walk_in_depth(graph: Mapping[_Part, Collection[_Part]]) -> Iterator[tuple[_Part, bool]]:
    """Yield each part when a walk in depth, which enters each once, enters it, with True, and leaves it, with False."""
    seen: set[_Part] = set()
    inside: list[_Part] = []
    others = [iter(graph)]  # of the parts to enter: all of them, and then those that each part leads to
    while others:
        following = next((part for part in others[-1] if part in graph and part not in seen), None)
        if following is not None:
            seen.add(following)
            inside.append(following)
            others.append(iter(graph[following]))
            yield following, True
            continue
        others.pop()
        if inside:
            yield inside.pop(), False

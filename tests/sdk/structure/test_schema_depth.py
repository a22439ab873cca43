"""How far the references of a JSON schema may lead: llguidance follows them on the stack, and no error ends that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgelm.errors import ConfigError
from edgelm.structure.constraint import Constraint
from edgelm.structure.constraint_matcher import check_form
from edgelm.structure.schema_depth import refuse_depth
from edgelm.structure.tool_formats import FORMATS
from edgelm.structure.tools import tool_constraint

Schema = dict[str, Any]
STEPS: dict[str, Callable[[Schema], Schema]] = {
    "a reference alone": lambda following: following,
    "items": lambda following: {"type": "array", "items": following},
    "a property": lambda following: {"type": "object", "properties": {"a": following}},
    "alternatives": lambda following: {"anyOf": [following, {"type": "null"}]},
}


def chain(length: int, step: Callable[[Schema], Schema], form: str = "#/$defs/d{}") -> Schema:
    """Return a schema whose definitions lead from one to the next."""
    steps = {f"d{i}": step({"$ref": form.format(i + 1)}) for i in range(length)}
    return {"$ref": form.format(0), "$defs": {**steps, f"d{length}": {"type": "string"}}}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_references_that_lead_too_deep_are_refused_and_the_others_are_compiled(
    step: Callable[[Schema], Schema],
) -> None:
    check_form(Constraint.json_schema(chain(100, step)))
    with pytest.raises(ConfigError, match=r"its references lead \d{4,5} levels deep, .* at most 384 are followed"):
        Constraint.json_schema(chain(1200, step))


def test_a_tools_parameters_are_looked_at_too() -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", **chain(3000, STEPS["items"])}},
    }
    with pytest.raises(ConfigError, match="its references lead 6005 levels deep"):
        tool_constraint([tool], "required", FORMATS[0])


def test_what_leads_back_to_itself_is_taken_and_what_is_wide_too() -> None:
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}}
    wide = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{3 * i + 1}"}}} for i in range(300)}
    for schema in (tree, {"$ref": "#/$defs/d0", "$defs": wide | {f"d{i}": {} for i in range(300, 999)}}):
        refuse_depth(schema)


@pytest.mark.parametrize("others", [[], ["b"], ["b", "c"]])
@pytest.mark.parametrize("strict", [True, False])
def test_a_reference_that_leads_to_itself_alone_is_refused_before_an_answer_comes_to_it(
    others: list[str], strict: bool
) -> None:
    ring = dict(zip(["a", *others], [*others, "a"], strict=True))
    properties: Schema = {name: {"$ref": f"#/properties/{following}"} for name, following in ring.items()}
    with pytest.raises(ConfigError, match=r"the reference #/properties/[abc] leads back to itself before it says"):
        Constraint.json_schema({"type": "object", "properties": properties}, strict=strict)
    properties["a"] = {"type": "string"}
    check_form(Constraint.json_schema({"type": "object", "properties": properties}, strict=strict))


@pytest.mark.parametrize("keys", [["anyOf"], ["allOf"], ["oneOf"], ["anyOf", "allOf"], ["oneOf", "anyOf", "allOf"]])
def test_a_ring_that_leads_through_alternatives_is_refused_unless_one_of_them_says_something(keys: list[str]) -> None:
    ring = {f"d{i}": {key: [{"$ref": f"#/$defs/d{(i + 1) % len(keys)}"}]} for i, key in enumerate(keys)}
    schema: Schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": ring}
    with pytest.raises(ConfigError, match=r"the reference #/\$defs/d\d leads back to itself before it says anything"):
        Constraint.json_schema(schema)
    ring["d0"] = {"anyOf": [*ring["d0"].popitem()[1], {"type": "string"}]}
    check_form(Constraint.json_schema(schema))


class Seen(list[object]):
    """A list that counts how often it is gone through."""

    times = 0

    def __iter__(self) -> Iterator[object]:
        self.times += 1
        return super().__iter__()


@pytest.mark.parametrize("from_end", [False, True])
def test_a_part_is_looked_at_no_more_often_where_it_waits_for_a_long_chain(from_end: bool) -> None:
    seen = Seen([{"$ref": "#/$defs/d99"}])
    steps: Schema = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}]} for i in range(1, 100)}
    ends: Schema = {"d0": {"type": "string"}, "all": {"allOf": seen}}
    parts = [*(ends | steps).items()]
    refuse_depth({"$ref": "#/$defs/all", "$defs": dict(parts[::-1] if from_end else parts)})
    assert seen.times <= 5


def test_what_many_references_lead_to_is_walked_through_once_for_all_of_them() -> None:
    part: Schema = {"enum": (seen := Seen("ab"))}
    for _ in range(100):
        part = {"items": part}
    refuse_depth({**part, "anyOf": [{"$ref": "#" + "/items" * steps} for steps in range(1, 100)]})
    assert seen.times <= 2  # on the way there, and back


@pytest.mark.parametrize("form", ["#d{}", "https://x.org/d{}"])
def test_references_that_are_no_pointers_count_as_leading_anywhere(form: str) -> None:
    refuse_depth(chain(50, STEPS["a reference alone"], form))
    with pytest.raises(ConfigError, match="levels deep"):
        refuse_depth(chain(500, STEPS["a reference alone"], form))


def test_a_reference_counts_for_each_way_that_it_is_spelled_where_it_leads_back() -> None:
    """llguidance takes each spelling for another place."""
    letters = "abcdefghij"
    spelled = ["".join(f"%{ord(c):x}" if i >> k & 1 else c for k, c in enumerate(letters)) for i in range(1 << 10)]
    alternatives = [{"$ref": f"#/$defs/{name}"} for name in spelled]
    with pytest.raises(ConfigError, match="levels deep"):
        refuse_depth({"$ref": f"#/$defs/{letters}", "$defs": {letters: {"anyOf": alternatives}}})


def test_the_order_in_which_references_are_followed_does_not_matter() -> None:
    """Whoever looked at the middle first would find each half alone."""
    both_ways = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(200)}
    ends = {"d-1": {"type": "null"}, "d200": {"type": "null"}}
    with pytest.raises(ConfigError, match="levels deep"):
        refuse_depth({"anyOf": [{"$ref": "#/$defs/d100"}, {"$ref": "#/$defs/d0"}], "$defs": both_ways | ends})

"""How far the rules of a grammar may lead: llguidance follows them on the stack, and no error ends that."""

from __future__ import annotations

import json

import pytest

from edgelm.errors import ConfigError
from edgelm.structure.constraint import Constraint
from edgelm.structure.constraint_matcher import check_form
from edgelm.structure.grammar_depth import refuse_grammar_depth
from edgelm.structure.tool_formats import FORMATS
from edgelm.structure.tools import tool_constraint

STEPS = {
    "a rule alone": "r{}: r{}",
    "a rule between texts": 'r{}: "a" r{} "b"',
    "alternatives in brackets": 'r{}: ("a" | ("c" r{})?)*',
    "a rule with a priority and attributes": 'r{}.2[lazy, stop="]:"] : r{}',
    "a terminal": 'T{}: "a" T{}',
    "texts, patterns and comments with signs of grammars": 'r{}: "[(\\"a:" /[(\\/"]/ // ((( b: "\n | r{}',
}


def chain(step: str, length: int) -> str:
    """Return a grammar whose rules lead from one to the next."""
    last = step.partition("{")[0] + str(length)
    rules = [step.format(i, i + 1) for i in range(length)]
    return "\n".join([f"start: {last[0]}0", *rules, f'{last}: "x"'])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_rules_that_lead_too_deep_are_refused_before_llguidance_sees_them(step: str) -> None:
    refuse_grammar_depth(chain(step, 100))
    with pytest.raises(ConfigError, match=r"its rules lead \d{4,5} levels deep, .* at most 384 are followed"):
        check_form(Constraint.lark(chain(step, 3000)))


def test_rules_below_the_bound_are_compiled() -> None:
    for step in ("a rule alone", "a rule between texts", "alternatives in brackets", "a terminal"):
        check_form(Constraint.lark(chain(STEPS[step], 380 // (3 if "(" in STEPS[step] else 1))))


def test_rules_of_gbnf_are_bounded_too() -> None:
    rules = "\n".join(f'r{i} ::= "a" r{i + 1}' for i in range(500))
    with pytest.raises(ConfigError, match="its rules lead 502 levels deep"):
        check_form(Constraint.gbnf(f'root ::= r0\n{rules}\nr500 ::= "x"'))


def test_many_rules_that_do_not_lie_in_each_other_are_taken() -> None:
    wide = "start: " + " | ".join(f"w{i}" for i in range(1000)) + "".join(f'\nw{i}: "{i}"' for i in range(1000))
    known = "start: " + " ".join(f"r{i}" for i in reversed(range(3001))) + chain(STEPS["a rule alone"], 3000)[9:]
    for grammar in (wide, known):
        check_form(Constraint.lark(grammar))


def test_a_schema_in_a_grammar_is_bounded_too() -> None:
    steps = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(3000)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**steps, "d3000": {"type": "string"}}}
    with pytest.raises(ConfigError, match="its references lead 6005 levels deep"):
        check_form(Constraint.lark(f"start: %json {json.dumps(schema)}"))


@pytest.mark.parametrize("mark", ['"', "/"])
@pytest.mark.parametrize("last", ["", "\\"])
def test_a_text_that_nobody_ends_is_left_to_llguidance(mark: str, last: str) -> None:
    grammar = f"start: {mark}a\\{mark}{'(' * 500}{last}"
    with pytest.raises(ConfigError, match=r"^(?!.* levels deep)"):
        check_form(Constraint.lark(grammar))


@pytest.mark.parametrize("name", ["lfm2", "olmo3", "gemma4", "functiongemma"])
def test_a_tool_whose_parameters_make_too_many_rules_is_refused(name: str) -> None:
    words = [f"p{i}" for i in range(600)]
    parameters = {"type": "object", "properties": {word: {"type": "string"} for word in words}, "required": words}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    chosen = next(known for known in FORMATS if known.name == name)
    constraint = tool_constraint([tool], "required", chosen)
    assert constraint is not None
    with pytest.raises(ConfigError, match=r"its rules lead 60\d levels deep, .*each parameter of a tool"):
        check_form(constraint)

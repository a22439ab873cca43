"""The parameters of tools: what is enforced of their schemas, and what is refused."""

import json
import re
from typing import Any

import pytest
from tool_families import row

from edgelm.completion import Message
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.loading import load
from edgelm.structure.tagged_values import value_form
from edgelm.structure.tools import tool_constraint, tool_parameters
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer

QUESTION = [Message(role="user", content="How is the weather in Oslo?")]


@pytest.mark.parametrize(
    ("part", "word"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=.*[0-9])[a-z0-9]+"}, "look-around"),
        ({"anyOf": [{"type": "string", "pattern": r"(.)\1"}, {"type": "null"}]}, "backreferences"),
        ({"type": "object", "patternProperties": {"(?!x)": {"type": "string"}}}, "look-around"),
        ({"type": "object", "minProperties": 3}, "minProperties is 3"),
    ],
)
def test_keywords_that_cannot_be_enforced_are_left_to_the_model_unless_the_tool_is_strict(
    part: dict[str, Any], word: str
) -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": part}, "required": ["a"]}}
    model = load(tiny_model_path())
    config = GenerationConfig(max_new_tokens=60, temperature=1.0, seed=1)
    assert model.stream_chat(QUESTION, config, tools=[tool], tool_choice="required")
    with pytest.raises(ConfigError, match=word):
        model.stream_chat(QUESTION, config, tools=[tool | {"strict": True}], tool_choice="required")


def test_a_pattern_that_can_be_enforced_holds_in_a_tool_that_is_not_strict() -> None:
    part = {"type": "string", "pattern": "^[0-9]{3}$"}
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": part}, "required": ["a"]}}
    config = GenerationConfig(max_new_tokens=60, temperature=1.0, seed=1)
    answer = load(tiny_model_path()).chat(QUESTION, config, tools=[tool], tool_choice="required")
    (call,) = answer.tool_calls
    assert re.fullmatch("[0-9]{3}", json.loads(call.arguments)["a"])


@pytest.mark.parametrize("strict", [True, False])
def test_types_of_python_are_those_of_json(strict: bool) -> None:
    """Programs write them into schemas from annotations."""
    parts = {
        "amount": {"type": "float"},
        "count": {"type": ["int", "None"], "maximum": 3},
        "names": {"type": "list", "items": {"type": "str", "maxLength": 2}, "maxItems": 2},
        "more": {"type": "dict", "properties": {"type": {"type": "bool"}}, "required": ["type"]},
    }
    parts["more"]["additionalProperties"] = False
    tool = {"name": "f", "parameters": {"type": "dict", "properties": parts, "required": [*parts]}, "strict": strict}
    config = GenerationConfig(max_new_tokens=200, temperature=1.0, seed=2)
    (call,) = load(tiny_model_path()).chat(QUESTION, config, tools=[tool], tool_choice="required").tool_calls
    made = json.loads(call.arguments)
    assert isinstance(made["amount"], (int, float))
    assert made["count"] is None or made["count"] <= 3
    assert all(len(name) <= 2 for name in made["names"])
    assert [type(value) for value in made["more"].values()] == [bool]


def test_a_parameter_of_any_type_may_be_anything(tokenizer: Tokenizer) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "any"}}, "required": ["a"]}}
    constraint = tool_constraint([tool], "required", row("hermes"))
    assert constraint is not None
    for value in ("1", '"x"', "[null]"):
        matcher = constraint.compile(tokenizer)
        for id_ in tokenizer.encode(f'<tool_call>\n{{"name": "f", "arguments": {{"a": {value}}}}}\n</tool_call>'):
            matcher.advance(id_)


def test_a_text_that_a_call_has_in_tags_is_read_by_the_type_that_python_calls_so() -> None:
    parameters = tool_parameters([{"name": "f", "parameters": {"properties": {"a": {"type": "str"}}}}])["f"]
    assert value_form(parameters["properties"]["a"], parameters).read("5") == '"5"'


def test_a_tools_broken_schema_is_refused_without_the_grammar_around_it() -> None:
    tool = {"name": "f", "parameters": {"properties": {"a": {"type": "objekt"}}}}
    with pytest.raises(ConfigError, match=r"^The JSON schema of a tool, .*cannot be enforced: Invalid type: objekt$"):
        load(tiny_model_path()).stream_chat(QUESTION, tools=[tool], tool_choice="required")


@pytest.mark.parametrize("name", ["qwen3-coder", "gemma4"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {}}, "required": [5]},
        {"properties": {5: {}}},
        {"properties": {"a": {"type": "string", "maxLength": "x"}}, "required": ["a"]},
    ],
)
def test_parameters_that_are_no_schema_are_refused_where_calls_are_no_json(name: str, parameters: Any) -> None:
    with pytest.raises(ConfigError, match=r"The parameters of the tool 'f' (are no JSON schema|cannot be enforced): "):
        tool_constraint([{"name": "f", "parameters": parameters}], "auto", row(name))


@pytest.mark.parametrize("name", ["qwen3-coder", "gemma4"])
@pytest.mark.parametrize("key", ["anyOf", "allOf"])
def test_a_small_schema_of_endless_parts_takes_no_time(name: str, key: str) -> None:
    definitions: dict[str, Any] = {f"d{i}": {key: [{"$ref": f"#/$defs/d{i + 1}"}] * 10} for i in range(20)}
    parameters = {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    tools = [{"name": "f", "parameters": parameters}]
    for last in ({"type": "string"}, {"$ref": "#/$defs/d0"}, {key: 5}):
        definitions["d20"] = last
        if "$ref" in last:
            with pytest.raises(ConfigError, match="leads back to itself before it says anything"):
                tool_constraint(tools, "auto", row(name))
        else:
            assert tool_constraint(tools, "auto", row(name)) is not None
        assert value_form({"$ref": "#/$defs/d0"}, parameters).read("5") in ("5", '"5"')


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"exclusiveMinimum": 0, "minimum": "x"}, "'>' not supported"),
        ({"format": "date", "allOf": 5}, "must be an iterable"),
        ({"type": "object", "default": {1}}, "set is not JSON serializable"),
        ({"type": "object", "properties": {"a": {1: 2}}}, "it has the key 1, and keys are texts"),
        ({"type": "object", "default": float("nan")}, "not JSON compliant"),
        (_nested(3000), "recursion depth"),
    ],
)
def test_parameters_that_are_no_schema_are_refused_by_the_tools_name(
    parameters: dict[str, Any], problem: str, strict: bool
) -> None:
    tool = {"name": "f", "parameters": parameters, "strict": strict}
    for choice in ("auto", "required"):
        with pytest.raises(ConfigError, match=f"The parameters of the tool 'f' are no JSON schema: .*{problem}"):
            tool_constraint([tool], choice, row("hermes"))  # type: ignore[arg-type]


@pytest.mark.parametrize("parameters", [{"properties": {"a": {}}}, {"type": ["null", "object"]}, {"title": "x"}])
def test_arguments_are_an_object_whether_or_not_the_schema_says_it(
    tokenizer: Tokenizer, parameters: dict[str, Any]
) -> None:
    constraint = tool_constraint([{"name": "f", "parameters": parameters}], "required", row("hermes"))
    assert constraint is not None
    matcher = constraint.compile(tokenizer)
    for id_ in tokenizer.encode('<tool_call>\n{"name": "f", "arguments":'):
        matcher.advance(id_)
    assert tokenizer.decode(matcher.forced()).startswith(" {")


def test_a_schema_that_names_no_properties_leaves_them_free(tokenizer: Tokenizer) -> None:
    constraint = tool_constraint([{"name": "f", "parameters": {"type": "object"}}], "required", row("hermes"))
    assert constraint is not None
    matcher = constraint.compile(tokenizer)
    for id_ in tokenizer.encode('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'):
        matcher.advance(id_)


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("kind", ["string", ["array", "null"], 5])
def test_parameters_of_another_type_are_refused(kind: Any, choice: Any) -> None:
    with pytest.raises(ConfigError, match=f"The parameters of the tool 'f' are of type {re.escape(repr(kind))}; argu"):
        tool_constraint([{"name": "f", "parameters": {"type": kind}}], choice, row("hermes"))

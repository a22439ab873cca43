"""Calls of tools with strings between marks, as Gemma 4 writes them: what is read of them, and what may be written."""

import json
import re
from typing import Any

import jsonschema
import pytest
from thinking_model import model_with_marks
from tool_families import QUESTION, TEMPLATES, TOOLS, accepts, must_call, row, with_template, written

from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.loading import load
from edgelm.structure.marked_call_reader import MarkedCallReader
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import tool_format
from edgelm.structure.tools import tool_constraint
from edgelm.testing import tiny_model_path

MARKED = pytest.mark.parametrize("name", ["gemma4", "functiongemma"])
STRING = {"type": "string"}


def read(call: str) -> tuple[str | None, str, bool]:
    """Return the name of a call, its arguments, and whether it is whole; `'` stands for a mark."""
    reader = MarkedCallReader('<|"|>')
    for char in call.replace("'", '<|"|>'):
        if reader.is_closed or not reader.push(char):
            return reader.name, reader.arguments, False
    return reader.name, reader.arguments, reader.is_closed


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("call:f{}", "{}"),
        ("\n call:f{ }", "{}"),
        ("call:f{a:'Oslo',b:5}", '{"a": "Oslo", "b": 5}'),
        ("call:f{a:'{x:1}, \"[\n<|'}", '{"a": "{x:1}, \\"[\\n<|"}'),
        ("call:f{a:[],b:[1,'x',[2]],c:{},d:{e:{f:'g'},h:1}}",
         '{"a": [], "b": [1, "x", [2]], "c": {}, "d": {"e": {"f": "g"}, "h": 1}}'),
        ("call:f{a:true,b:false,c:null,d:True,e:None,f:-1.5e3,g:.5}",
         '{"a": true, "b": false, "c": null, "d": true, "e": null, "f": -1.5e3, "g": 0.5}'),
        ("call:f{\n  a: 'x',\n  b: [ 1, 2 ]\n}", '{"a": "x", "b": [1, 2]}'),
        ("call:f{'a:b':1,\"c\":2}", '{"a:b": 1, "c": 2}'),  # keys between marks, or in quotes
        ('call:f{a:Oslo,b:10:30,c:,d:"x"}', '{"a": "Oslo", "b": "10:30", "c": "", "d": "x"}'),  # without marks
        ("call:f{a:[1,,2,],b:1,}", '{"a": [1, 2], "b": 1}'),
        ("call:f{a:'x' y,b:'z''w'}", '{"a": "x", "b": "z"}'),  # what follows a value is left out
        ("call:f{a:1]", '{"a": 1}'),
    ],
)  # fmt: skip
def test_a_call_is_read_as_json(call: str, arguments: str) -> None:
    assert read(call) == ("f", arguments, True)
    json.loads(arguments)


@pytest.mark.parametrize(
    "call", ["f{}", "call:{}", "call:f g{}", "call:f(a=1)", "call f{}", "{}", "calls", "call:" + "f" * 257]
)
def test_what_is_no_call_has_no_name(call: str) -> None:
    assert read(call)[::2] == (None, False)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("call:f{a:'x", ("f", '{"a": "x')),
        ("call:f{a:'x',b:1", ("f", '{"a": "x", "b": ')),
        ("call:f{a:1", (None, '{"a": ')),
    ],
)
def test_a_call_that_does_not_end_has_what_came_of_it(call: str, expected: tuple[str | None, str]) -> None:
    assert read(call) == (*expected, False)


@MARKED
def test_a_string_is_handed_on_while_it_is_written(name: str) -> None:
    parser = ToolCallParser(row(name))
    text = written(name).replace("celsius", "<x\n")
    parts = [delta.arguments for char in text for delta in parser.push(char)[1] if delta.index == 0]
    assert parts == ['{"city": "', "O", "s", "l", "o", '"', ', "unit": ', '"', "<x", "\\n", '"', "}"]


def may_write(name: str, schema: dict[str, Any], text: str, *, strict: bool = False) -> bool:
    """Say whether a model that must call may write this, and nothing after it; `'` stands for a mark."""
    format_ = row(name)
    tool = {"name": "f", "parameters": schema, "strict": strict}
    return accepts(must_call(tool, name), f"{format_.start}{text}{format_.end}".replace("'", format_.quote))


TREE: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}},
    "required": ["n"],
}


@MARKED
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (STRING, ["'5'", "''", "' x\n{,}'"], ["5", "x"]),
        ({"type": "string", "maxLength": 2}, ["'ab'"], ["'abc'"]),
        ({"type": "string", "pattern": "^a+$"}, ["'aa'"], ["'ab'"]),
        ({"enum": ["a", 5, None, True, [1, "b"], {"d": 1, "c": "e"}]},
         ["'a'", "5", "null", "true", "[1,'b']", "{c:'e',d:1}"], ["a", "'5'", "{d:1,c:'e'}"]),
        ({"type": "integer", "minimum": 2}, ["2", "30"], ["1", "2.5", "'2'"]),
        ({"type": "number"}, ["2.5", "-1"], ["true"]),
        ({"type": ["boolean", "null"]}, ["true", "false", "null"], ["None"]),
        ({"type": "array", "items": STRING, "minItems": 1, "maxItems": 2}, ["['a']", "['a','b']"],
         ["[]", "['a','b','c']", "[1]"]),
        ({"type": "array", "items": STRING}, ["[]", "['a','b','c']"], ["['a', 'b']"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array", "maxItems": 1}, ["[]", "[{}]"], ["[1,2]"]),
        ({"anyOf": [STRING, {"type": "array", "items": {"type": "integer"}}]}, ["'x'", "[1]"], ["['x']", "1"]),
        ({"type": ["string", "number"], "enum": ["a", None, 5, 2.5]}, ["'a'", "5", "2.5"], ["null"]),
        ({"type": ["null", "integer"], "anyOf": [STRING, {"type": "number"}]}, ["1"], ["1.5", "'x'", "null"]),
        ({"$ref": "#/$defs/tree"}, ["{n:1}", "{n:1,next:{n:2,next:{n:3}}}"], ["{}", "{next:{n:2}}", "{n:1,n:2}"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", "{x:1,y:2}"], ["{x:'a'}"]),
        ({"type": "object", "propertyNames": {"pattern": "^x"}, "additionalProperties": {"type": "integer"}},
         ["{}", "{x:1,xy:2}"], ["{x:'a'}"]),
        ({"type": "object", "patternProperties": {"^x": STRING, "^y": {"type": "integer"}, "^z": False},
          "additionalProperties": False}, ["{}", "{x:'a',y:2}"], ["{x:null}"]),
        ({}, ["'x'", "1", "null", "[{x:[true]}]", "{x:'y'}"], ["x"]),
    ],
)  # fmt: skip
def test_a_value_is_what_the_schema_allows(name: str, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    parameters = {"properties": {"a": schema}, "required": ["a"], "$defs": {"tree": TREE}}
    assert [text for text in good + bad if may_write(name, parameters, f"call:f{{a:{text}}}")] == good


def test_properties_stand_in_the_order_of_their_names_and_those_not_named_behind_them() -> None:
    number = {"type": "integer"}
    named = {"properties": {"b": number, "A": number, "c": number, "d": False}, "required": ["b", "e"]}
    more = {**named, "additionalProperties": number}
    for schema, text, expected in (
        (named, "{b:1,e:'x'}", True),
        (named, "{A:1,b:1,c:2,e:2}", True),
        (named, "{b:1,A:1,e:2}", False),
        (named, "{b:1,d:1,e:2}", False),
        (named, "{b:1}", False),
        (named, "{b:1,e:2,f:3}", False),
        (more, "{b:1,e:2,f:3,g:4}", True),
        (more, "{b:1,e:2,f:'x'}", False),
        ({"properties": {}}, "{}", True),
        ({"properties": {}}, "{a:1}", False),
        ({"type": "object"}, "{a:1,b:[]}", True),
        ({"properties": {"a:b": number}}, "{}", True),  # which cannot be written
        ({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}, "{n:1}", True),
    ):
        assert may_write("gemma4", schema, f"call:f{text}") is expected, (schema, text)


@pytest.mark.parametrize(
    ("schema", "strict", "problem"),
    [
        ({"properties": []}, False, "properties is a mapping, and required a list"),
        ({"properties": {"a:b": {}}, "required": ["a:b"]}, False, "the name 'a:b' cannot stand before a colon"),
        ({"properties": {"a": {"enum": []}}, "required": ["a"]}, False, "no value of a property can be written"),
        ({"properties": {"a": {"minLength": 2, "anyOf": [{"minLength": 1}]}}}, True, "'minLength' stands beside"),
        ({"properties": {"a": {"enum": []}}}, True, "no value of a property can be written"),
        (
            {"properties": {}, "minProperties": 1},
            True,
            "'minProperties' cannot be enforced in a call with strings between",
        ),
        (
            {"properties": {"a": {"type": "array", "contains": {}}}},
            True,
            "'contains' cannot be enforced in a call with",
        ),
        (
            {"properties": {"a": STRING | {"format": "regex"}}},
            True,
            "'format' cannot be enforced in a text without quotes",
        ),
    ],
)
def test_parameters_that_no_call_can_have_are_refused(schema: Any, strict: bool, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"The parameters of the tool 'f' cannot be enforced: {re.escape(problem)}"):
        may_write("gemma4", schema, "", strict=strict)
    if strict:
        assert may_write("gemma4", schema, "call:f{}")


def test_a_tool_whose_name_no_call_can_have_is_refused() -> None:
    for name in ("say it", "f{", "f" * 257):
        with pytest.raises(ConfigError, match=r"The tool's name .* as this model writes it, call:name\{…\}"):
            tool_constraint([{"name": name}], "auto", row("gemma4"))


@MARKED
def test_every_call_that_a_model_completes_fits_its_schema(name: str) -> None:
    properties = {
        "to": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "via": {"type": "array", "items": {"enum": ["sea", 1, None]}, "maxItems": 2},
        "more": {"anyOf": [{"type": "boolean"}, {"type": "object", "properties": {"a": STRING}, "required": ["a"]}]},
    }
    schema = {"type": "object", "properties": properties, "required": ["to", "more"]}
    model = with_template(load(tiny_model_path()), name)
    whole = 0
    for seed in range(4):
        config = GenerationConfig(max_new_tokens=300, temperature=1.0, seed=seed, logit_bias={2: 6.0})
        answer = model.chat(QUESTION, config, tools=[{"name": "go", "parameters": schema}], tool_choice="required")
        assert answer.text == ""
        for made in answer.tool_calls[: None if answer.finish_reason == "tool_calls" else -1]:
            jsonschema.validate(json.loads(made.arguments), schema)
            whole += 1
    assert whole >= 2


@MARKED
def test_marks_that_are_control_tokens_are_read_and_written_as_such(name: str) -> None:
    format_ = row(name)
    marks = (format_.start, format_.end, format_.quote)
    model = model_with_marks(written(name), TEMPLATES[name], marks)
    assert set(tool_format(model.chat_template, model.tokenizer).control_ids) == set(marks)
    for choice in ("auto", "required"):
        answer = model.chat(QUESTION, tools=TOOLS, tool_choice=choice)  # type: ignore[arg-type]
        assert [(made.name, json.loads(made.arguments)) for made in answer.tool_calls] == [
            ("get_weather", {"city": "Oslo", "unit": "celsius"}), ("stop", {})
        ]  # fmt: skip
        assert sum(id_ in model.tokenizer.control_token_ids for id_ in answer.token_ids) >= 8

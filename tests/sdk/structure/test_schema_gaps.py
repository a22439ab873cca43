"""JSON schemas: what llguidance passes over, or takes for something else, is enforced or refused by name."""

import json
from typing import Any

import jsonschema
import pytest
from constraint_texts import accepts

from edgelm.errors import ConfigError
from edgelm.structure.constraint import Constraint
from edgelm.structure.schema_gaps import close_gaps
from edgelm.text.tokenizer import Tokenizer


def test_a_schema_may_give_up_what_cannot_be_enforced(tokenizer: Tokenizer) -> None:
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    assert accepts(Constraint.json_schema(schema), tokenizer, "[1, 1]")
    style = {"whitespace_flexible": True, "item_separator": ",", "key_separator": ":"}
    assert accepts(Constraint.json_schema({"x-guidance": style}), tokenizer, "[1 ,\n1]")


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "string", "format": "date"}, ["2020-02-29", "2000-02-29", "2021-12-31"],
         ["2021-02-29", "1900-02-29", "0000-01-01", "2021-04-31"]),
        ({"type": "string", "format": "time"}, ["23:59:59Z", "12:00:00.5+01:00"], ["12:00:60Z", "24:00:00Z", "12:00"]),
        ({"type": "string", "format": "date-time"}, ["2024-02-29T12:00:00Z"], ["2021-02-29T12:00:00Z"]),
        ({"type": "number", "exclusiveMinimum": 10, "maximum": 10.25}, [10.1, 10.25], [10, 10.0, 10.26]),
        ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, [-0.1], [0, 0.0]),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 10.5}, [10, 10.4], [10.5]),
        ({"type": "number", "minimum": 5, "maximum": 15.379999999999999}, [15.25, 5, 5.5], [15.38]),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4}, [2, 3], [1, 4]),
        ({"allOf": [{"exclusiveMinimum": 3}, {"maximum": 3.5}], "type": "number"}, [3.25], [3]),
        ({"$ref": "#/components/schemas/n", "components": {"schemas": {"n": {"exclusiveMinimum": 3, "maximum": 3.5}}}},
         [3.25], [3]),
        ({"type": "array", "items": {"exclusiveMinimum": 3, "maximum": 3.5}}, [[3.25]], [[3]]),
        ({"type": "array", "prefixItems": [{"exclusiveMinimum": 3, "maximum": 3.5}]}, [[3.25]], [[3]]),
        ({"type": "object", "additionalProperties": {"exclusiveMinimum": 3, "maximum": 3.5}},
         [{"a": 3.25}], [{"a": 3}]),
        ({"type": "object", "patternProperties": {"^a$": {"exclusiveMinimum": 3, "maximum": 3.5}}},
         [{"a": 3.25}], [{"a": 3}]),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"exclusiveMinimum": 3, "maximum": 3.5}}}, [3.25], [3]),
        ({"$ref": "#/definitions/n", "definitions": {"n": {"exclusiveMinimum": 3, "maximum": 3.5}}}, [3.25], [3]),
        ({"oneOf": [{"exclusiveMinimum": 3, "maximum": 3.5}], "x-guidance": {"coerce_one_of": True}}, [3.25], [3]),
        ({"type": "string", "pattern": r'^[^"\\]+$'}, ["a\n"], ['"', "a\\"]),
        ({"type": "string", "pattern": r'^\[[^]"][^-"][^a-z"]$'}, ["[ab\n"],
         ['["bC', '[a"C', '[ab"', "[]bC", "[a-C"]),
        ({"type": "object", "patternProperties": {'^[^"]$': {"type": "integer"}}, "additionalProperties": False},
         [{"a": 1}], [{'"': 1}]),
        ({"properties": {"exclusiveMinimum": {"const": 1}}}, [{"exclusiveMinimum": 1}], [{"exclusiveMinimum": 2}]),
        ({"type": "string", "pattern": r'^[^"\\\]]$'}, ["a", " "], ['"', "\\", "]"]),
        ({"type": "string", "pattern": r"^\[[^-a]$"}, ["[b"], ["[-", "[a"]),
        *(({"type": "string", "pattern": pattern}, ["a\n"], ['a"', "a\\"]) for pattern in (
            r"^a[\x00-\x1f]$", "^a[\0-\x1f]$", "^a[\x00-\x07\x08-\x1f]$", "^a(?:[\x00-\x0f]|[\x10-\x1f])$")),
        ({"type": "string", "pattern": r"^\[[\]\x00-\x21]$"}, ["[]", "[!", "[\t"], ['["', "[\\", "[[", "[-"]),
        ({"type": "string", "pattern": r"^a[-\x00-\x1f]$"}, ["a-", "a\t"], ['a"', "a\\", "a&"]),
        ({"$ref": "#/$defs/Liste[1 #], 5%, ä", "$defs": {"Liste[1 #], 5%, ä": {"type": "integer"}}}, [1], ["1"]),
        ({"$ref": "#/$defs/List%5Bint%5D", "$defs": {"List[int]": {"type": "integer"}}}, [1], ["1"]),
        ({"$id": "Output Format", "$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, [1], ["1"]),
        ({"type": "string", "pattern": r"^[^[\]&&~~]$"}, ["a", "-", "^"], ["[", "]", "&", "~"]),
        ({"type": "string", "pattern": r"^[+--][\x00-\x1f--/][a&&b]$"}, ["+-a", ",/&", "-.b"],
         ["*-a", "+,a", "+-c"]),
        ({"type": "string", "pattern": "^[a[b]]$"}, ["a]", "[]"], ["a", "b", "]"]),
        ({"$id": "Step 2: Plan", "$ref": "Step 2: Plan#/$defs/a", "$defs": {"a": {"type": "integer"}}}, [1], ["1"]),
        ({"$id": "http://[::1]:80/a b", "$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, [1], ["1"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Possible set:FutureWarning")  # of Python's patterns, which may have those once too
def test_gaps_of_llguidance_are_closed(
    tokenizer: Tokenizer, schema: dict[str, Any], valid: list[Any], invalid: list[Any]
) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    for value in valid:
        assert validator.is_valid(value)
        assert accepts(Constraint.json_schema(schema), tokenizer, json.dumps(value))
    for value in invalid:
        assert not validator.is_valid(value)
        assert not accepts(Constraint.json_schema(schema), tokenizer, json.dumps(value))


def test_the_items_of_older_drafts_are_closed_too(tokenizer: Tokenizer) -> None:
    schema = {"type": "array", "items": [{"exclusiveMinimum": 3, "maximum": 3.5}]}
    validator = jsonschema.Draft7Validator(schema)
    for value, is_valid in (([3.25], True), ([3], False)):
        assert validator.is_valid(value) == is_valid
        assert accepts(Constraint.json_schema(schema), tokenizer, json.dumps(value)) == is_valid


INTEGERS = {"type": "object", "additionalProperties": {"type": "integer"}}
LISTS = {"type": "object", "additionalProperties": {"type": "array", "items": {}}}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (INTEGERS | {"propertyNames": {"type": "string", "description": "any"}}, [{"z": 1}], [{"z": "1"}]),
        (INTEGERS | {"propertyNames": {"enum": ["a", "b", 1]}, "required": ["b"]}, [{"a": 1, "b": 2}], [{"a": 1}]),
        (INTEGERS | {"propertyNames": {"const": "a"}, "properties": {"a": {"type": "null"}, "b": True}},
         [{"a": None}, {}], [{"a": 1}, {"b": 1}, {"c": 1}]),
        (LISTS | {"propertyNames": {"enum": ["a.b", "c"]}, "properties": {"c": {"type": "null"}, "d": True}},
         [{"c": None, "a.b": []}], [{"axb": []}, {"a.b": 1}, {"c": []}, {"d": 1}, {"": []}]),
        (LISTS | {"propertyNames": {"enum": ["c"]}, "properties": {"c": {"type": "null"}}}, [{"c": None}], [{"": []}]),
        (INTEGERS | {"propertyNames": {"pattern": r"^k\d$"}}, [{"k1": 1, "k2": 2}], [{"k": 1}, {"k1": "1"}]),
        (INTEGERS | {"propertyNames": {"minLength": 2, "maxLength": 3}}, [{"ab": 1, "äöü": 2}],
         [{"a": 1}, {"abcd": 1}]),
        ({"propertyNames": {"$ref": "#/$defs/n"}, "$defs": {"n": {"enum": ["a"]}}}, [{"a": 1}, 5], [{"b": 1}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [True, False])
def test_names_of_properties_are_those_that_the_schema_names(
    tokenizer: Tokenizer, schema: dict[str, Any], valid: list[Any], invalid: list[Any], strict: bool
) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    constraint = Constraint.json_schema(schema, strict=strict)
    for value in valid + invalid:
        assert validator.is_valid(value) == accepts(constraint, tokenizer, json.dumps(value, ensure_ascii=False))
        assert validator.is_valid(value) == (value in valid)


def test_copies_for_names_of_properties_do_not_grow_with_their_depth() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(20):
        schema = {"additionalProperties": schema, "propertyNames": {"enum": ["a", "b", "c"]}}
    assert len(Constraint.json_schema(schema).source) < 5_000


NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
AGE = {"properties": {"age": {"type": "integer"}}, "required": ["age"]}


@pytest.mark.parametrize(
    ("schema", "value", "strict", "taken"),
    [
        (NAME, {"name": "x"}, False, True),
        (NAME, {"name": "x", "b": 1}, False, False),
        (NAME, {"name": "x", "b": 1}, True, True),
        ({"type": "object", "properties": {"properties": NAME}}, {"properties": {"name": "x", "b": 1}}, False, False),
        ({"$ref": "#/$defs/a", "$defs": {"a": NAME}}, {"name": "x", "b": 1}, False, False),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": NAME}}, {"name": "x", "b": 1}, False, False),
        ({"anyOf": [NAME, {"type": "null"}]}, {"name": "x", "b": 1}, False, False),
        # What says of others what it likes, or would shut out its own properties, is read as it stands.
        (NAME | {"additionalProperties": {"type": "integer"}}, {"name": "x", "b": 1}, False, True),
        (NAME | {"patternProperties": {"^b$": {"type": "integer"}}}, {"name": "x", "b": 1}, False, True),
        (NAME | {"required": ["b"]}, {"b": 1}, False, True),
        ({"allOf": [NAME, AGE]}, {"name": "x", "age": 1}, False, True),
        (NAME | {"anyOf": [AGE]}, {"name": "x", "age": 1}, False, True),
        (NAME | {"allOf": [AGE]}, {"name": "x", "age": 1}, False, True),
        ({"type": "object"}, {"b": 1}, False, True),
        # null is as good as left out.
        (NAME | dict.fromkeys(("additionalProperties", "minProperties", "items")), {"name": "x", "b": 1}, False, False),
    ],
)
def test_an_object_that_does_not_say_has_no_other_names_where_that_is_not_strict(
    tokenizer: Tokenizer, schema: dict[str, Any], value: object, strict: bool, taken: bool
) -> None:
    assert accepts(Constraint.json_schema(schema, strict=strict), tokenizer, json.dumps(value)) == taken


@pytest.mark.parametrize("broken", [{"allOf": 5}, {"required": 5}, {"required": [{}]}, {"properties": 5}])
def test_a_broken_schema_that_is_not_strict_is_named_where_it_is_compiled(
    tokenizer: Tokenizer, broken: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="The JSON schema cannot be enforced"):
        Constraint.json_schema({"type": "object", "properties": {"a": {}}} | broken, strict=False).compile(tokenizer)


def test_a_schema_that_is_not_strict_may_have_nulls_and_any_dialect(tokenizer: Tokenizer) -> None:
    nulls = dict.fromkeys(("enum", "pattern", "minLength", "description"))
    schema = {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base", "type": ["string", "null"], **nulls}
    constraint = Constraint.json_schema(schema, strict=False)
    assert [accepts(constraint, tokenizer, text) for text in ('"x"', "null", "1")] == [True, True, False]
    written_otherwise = "https://json-schema.org/draft-07/schema#"  # it is http
    only_null = Constraint.json_schema({"$schema": written_otherwise, "const": None}, strict=False)
    assert [accepts(only_null, tokenizer, text) for text in ("null", "1")] == [True, False]


@pytest.mark.parametrize("strict", [True, False])
def test_a_count_may_be_written_with_a_point(strict: bool) -> None:
    parts = [{"minLength": 1, "maxLength": 2}, {"minItems": 1, "maxItems": 2}, {"minProperties": 1, "maxProperties": 2}]
    pointed = [{key: float(count) for key, count in part.items()} for part in parts]
    constraint = Constraint.json_schema({"anyOf": pointed}, strict=strict)
    assert constraint == Constraint.json_schema({"anyOf": parts}, strict=strict)
    with pytest.raises(ConfigError, match=r"minProperties is 3, with 0"):
        Constraint.json_schema({"minProperties": 3.0})
    assert Constraint.json_schema({"minLength": 1.5}).source == '{"minLength": 1.5}'  # which llguidance refuses


def test_names_and_values_in_a_schema_are_no_keywords() -> None:
    schema = {"properties": {"minProperties": 9, "format": {"type": "string"}}}
    schema |= {key: {"minProperties": 9} for key in ("const", "default", "example", "x-guidance")}
    assert close_gaps(schema) == schema


def test_what_is_not_refused_for_its_size_is_followed(tokenizer: Tokenizer) -> None:
    optional = {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(1000)}}
    optional["additionalProperties"] = False
    assert accepts(Constraint.json_schema(optional), tokenizer, '{"p7": 1, "p999": 2}')
    lists = {"enum": [[i] for i in range(4000)]}
    assert accepts(Constraint.json_schema(lists), tokenizer, "[3999]")

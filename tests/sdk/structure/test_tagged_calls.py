"""Calls of tools that are written in tags: what is read of them, and what may be written."""

import json
import re
from typing import Any

import jsonschema
import pytest
from thinking_model import model_with_marks
from tool_families import QUESTION, TEMPLATES, TOOLS, accepts, must_call, row, taken, with_template, written

from edgelm.errors import ConfigError, EdgeLMError
from edgelm.generation_config import GenerationConfig
from edgelm.loading import load
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import tool_format
from edgelm.structure.tools import tool_constraint
from edgelm.testing import tiny_model_path

TAGGED = pytest.mark.parametrize("name", ["qwen3-coder", "seed-oss", "glm"])
STRING = {"type": "string"}


def call(name: str, **arguments: str) -> str:
    """Return a call of `f` as a model writes it, from its marker on."""
    format_ = row(name)
    tags = format_.tags
    assert tags is not None
    parts = (
        f"{tags.before_key}{k}{tags.behind_key}{v}{tags.value_end}{tags.behind_value}" for k, v in arguments.items()
    )
    inside = f"{tags.before_name}f{tags.behind_name}{''.join(parts)}{tags.end}"
    return f"{format_.start}{format_.before}{inside}{format_.behind}{format_.end}"


@TAGGED
@pytest.mark.parametrize("text", ["5", "null", '{"a": 1}', "", ' "say"\n\n  é\t', "<b>x</b>\n</param"])
def test_a_text_is_what_stands_between_the_tags(name: str, text: str) -> None:
    arguments = json.dumps({"a": text}, ensure_ascii=False)
    assert taken(name, call(name, a=text), {"properties": {"a": STRING}}) == ("", [("f", arguments)], "tool_calls")


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string", "enum": ["true", "no"]}, "true", '"true"'),
        ({"$ref": "#/$defs/word"}, "5", '"5"'),
        ({"allOf": [{"$ref": "#/$defs/word"}], "description": "x"}, "5", '"5"'),
        ({"maxLength": 3}, "5", '"5"'),
        ({"type": "integer"}, "5", "5"),
        ({"type": "integer"}, " 5\n", "5"),
        ({"type": "integer"}, "five", '"five"'),
        ({"type": "integer"}, "0x1F", "31"),
        ({"minimum": 1}, "5", "5"),
        ({"type": "number"}, "-1.50e3", "-1.50e3"),
        ({"type": "number"}, "NaN", '"NaN"'),
        ({"type": "boolean"}, "true", "true"),
        ({"type": "boolean"}, "True", "true"),
        ({"type": "null"}, "None", "null"),
        ({"type": "array"}, '[1, "a"]', '[1, "a"]'),
        ({"type": "array"}, "['a', True]", '["a", true]'),
        ({"type": "array"}, "['a', g()]", '"[\'a\', g()]"'),
        ({"type": "array"}, "1, x=2", '"1, x=2"'),
        ({"type": "array"}, "[" * 2000, json.dumps("[" * 2000)),
        ({"properties": {}}, '{"a": 1}', '{"a": 1}'),
        ({"enum": [1, None, "auto"]}, "1", "1"),
        ({"enum": [1, None, "auto"]}, "auto", '"auto"'),
        ({"enum": [1, None, "auto"]}, "null", "null"),
        ({"const": 5}, "5", "5"),
        # Text and others: a number is text, what looks like a list, an object or null is that.
        ({"type": ["string", "integer"]}, "5", '"5"'),
        ({"type": ["string", "boolean", "null"]}, "true", '"true"'),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "None", "null"),
        ({"type": ["string", "null"]}, "[1]", '"[1]"'),
        ({"anyOf": [STRING, {"type": "array", "items": STRING}]}, '["a"]', '["a"]'),
        ({"anyOf": [STRING, {"type": "array", "items": STRING}]}, "[a](b)", '"[a](b)"'),
        ({"anyOf": [STRING, {"type": "array"}]}, "('a', 'b')", "\"('a', 'b')\""),
        ({"oneOf": [{"enum": ["auto"]}, {"type": "integer"}]}, "5", "5"),
        # The schema says nothing.
        ({}, "5", "5"),
        ({}, "text", '"text"'),
        ({"anyOf": [{}, STRING]}, "[1]", "[1]"),
        ({"type": "any"}, "5", "5"),
        ({"$ref": "#/$defs/none"}, "5", "5"),
        ({"$ref": "#/$defs/round"}, "5", "5"),
        (True, "5", "5"),
    ],
)  # fmt: skip
def test_the_tools_schema_says_what_is_text(schema: Any, text: str, value: str) -> None:
    definitions = {"word": STRING, "round": {"anyOf": [{"$ref": "#/$defs/round"}]}}
    parameters = {"type": "object", "properties": {"a": schema}, "$defs": definitions}
    expected = ("", [("f", f'{{"a": {value}}}')], "tool_calls")
    assert taken("glm", call("glm", a=text), parameters) == expected


def test_a_parameter_that_the_schema_does_not_name_is_what_it_says_of_others() -> None:
    matched = {"patternProperties": {"^a": STRING}, "additionalProperties": False}
    others = {"additionalProperties": STRING}
    for parameters, value in (({}, "5"), (others, '"5"'), ({"properties": {}}, "5"), (matched, '"5"')):
        assert taken("glm", call("glm", a="5"), parameters)[1] == [("f", f'{{"a": {value}}}')]


A = ("f", '{"a": "x", "b": 1}')
A_TEXT = "<function=f>\n<parameter=a>\nx\n</parameter>\n<parameter=b>\n1\n</parameter>\n</function>"
G_TEXT = "f\n<arg_key>a</arg_key>\n<arg_value>x</arg_value>\n<arg_key>b</arg_key>\n<arg_value>1</arg_value>\n"
A_TIGHT, G_TIGHT = A_TEXT.replace("\n", ""), G_TEXT.replace("\n", "")
NO_TAG, NO_END = A_TEXT.replace("</function>", ""), A_TEXT.replace("\n</parameter>\n<", "\n</parameter> and <")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen3-coder", f"I see.\n\n<tool_call>\n{A_TEXT}\n</tool_call>", ("I see.", [A])),
        ("qwen3-coder", f"<tool_call>\n{A_TEXT}\n</tool_call>\n<tool_call>{A_TEXT}</tool_call>So.", ("So.", [A, A])),
        ("qwen3-coder", f"<tool_call>{A_TIGHT}</tool_call>", ("", [A])),
        ("qwen3-coder", f"<tool_call>{A_TEXT.replace('>', '>  ', 1)}", ("", [A])),
        ("qwen3-coder", f"<tool_call>\n{A_TEXT}\n{A_TEXT}\n</tool_call>", ("", [A, A])),
        ("qwen3-coder", f"<tool_call>\n{NO_TAG}</tool_call>So.", ("So.", [A])),
        ("qwen3-coder", f"<tool_call>\n{NO_END}</tool_call>", ("", [A])),
        ("qwen3-coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>", ("", [("f", "{}")])),
        ("qwen3-coder", f"I see.\n{A_TEXT}\n</tool_call>So.", ("I see.So.", [A])),  # without the first marker
        ("qwen3-coder", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', ("", [("f", "{}")])),
        (
            "qwen3-coder",
            "<tool_call>\n<function=f>\n<parameter=a>\n</parameter>\n<parameter=b>\n1\n</parameter>\n</function>",
            ("", [("f", '{"a": "", "b": 1}')]),  # a line too few
        ),
        ("glm", f"I see.\n<tool_call>{G_TEXT}</tool_call>\n<tool_call>{G_TEXT}</tool_call>", ("I see.", [A, A])),
        ("glm", f"<tool_call>{G_TIGHT}</tool_call><tool_call>{G_TIGHT}</tool_call>So.", ("So.", [A, A])),
        ("glm", f"<tool_call>{G_TEXT}</tool_call>\nSo", ("\nSo", [A])),
        ("glm", "<tool_call>f\n</tool_call>", ("", [("f", "{}")])),
        *(
            ("qwen3-coder", text, (text, []))
            for text in (
                "<tool_call>\n<function=f>\nx</function>\n</tool_call>",
                "<tool_call>\n<function=>\n</function>\n</tool_call>",
                "<tool_call>\n<function=two words>\n</function>\n</tool_call>",
                "<tool_call>\n<func",
                "<tool_call>\n<function=f>\n<parameter=a",
                f"<tool_call>\n<function=f>\n<parameter={'a' * 1100}",
                A_TEXT.replace("=f>", "=g>"),  # which is no tool
                "Write <function=f> \n and so on.",
                "See \n<function=",
            )
        ),
        *(
            ("glm", text, (text, []))
            for text in (
                "<tool_call>g</tool_call>",  # which is no tool
                "<tool_call>f and more</tool_call>",
                "<tool_call>f\n<arg_key>a</arg_key>\nx",
                "<tool_call>f",
                "<tool_call><arg_key>",
            )
        ),
    ],
)
def test_calls_are_told_from_text_whatever_the_pieces(
    name: str, text: str, expected: tuple[str, list[tuple[str, str]]]
) -> None:
    parameters = {"properties": {"a": STRING}}
    splits = [[text[:place], text[place:]] for place in range(0, len(text), 1 + len(text) // 40)]
    for pieces in (list(text), *splits):
        assert taken(name, pieces, parameters) == (*expected, "tool_calls" if expected[1] else "stop")


def test_a_text_is_handed_on_while_it_is_written_and_another_value_once_it_is_whole() -> None:
    parser = ToolCallParser(row("qwen3-coder"), {"f": {"properties": {"a": STRING, "b": {"type": "integer"}}}})
    text = '<tool_call>\n<function=f>\n<parameter=a>\nx\n"</p\n</parameter>\n<parameter=b>\n12\n</parameter>\n'
    parts = [delta.arguments for char in text for delta in parser.push(char)[1]]
    assert parts == ['{"a": "', "x", '\\n\\"', "<", "/", "p", '"', ', "b": ', "12"]


@pytest.mark.parametrize(("end", "arguments"), [("", '{"a": "x'), ("\n</parameter>\n<para", '{"a": "x"')])
def test_a_call_that_does_not_end_has_what_came_of_it(end: str, arguments: str) -> None:
    text = f"<tool_call>\n<function=f>\n<parameter=a>\nx{end}"
    assert taken("qwen3-coder", text, {"properties": {"a": STRING}}) == ("", [("f", arguments)], "stop")


ONE_OF_TWO = {
    "type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"],
    "anyOf": [{"required": ["x"]}, {"required": ["y"]}],
}  # fmt: skip


def may_write(name: str, schema: dict[str, Any], text: str, *, strict: bool = False) -> bool:
    """Say whether a model that must call may write this, and nothing after it."""
    tool = {"name": "f", "parameters": schema, "strict": strict}
    return accepts(must_call(tool, name), text)


@TAGGED
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (STRING, ["5", "", " x\n<b>\n", "</param"], []),
        ({"type": "string", "maxLength": 3}, ["", "abc", "a\nb"], ["abcd"]),
        ({"type": "string", "maxLength": 0}, [""], ["a"]),
        ({"type": "string", "minLength": 2}, ["ab", "ab\n<"], ["", "a"]),
        ({"type": "string", "minLength": 1, "maxLength": 50_000}, ["a", "ab\nc"], [""]),
        ({"type": "string", "pattern": "^a+$|^/[a/|]$"}, ["aa", "/|", "//"], ["", "ab", "a|"]),
        ({"type": "string", "pattern": "a|(b|c)d|\\\\$"}, ["xay", "cd", "x\\"], ["c", "x\\x", "b|c"]),
        ({"type": "string", "pattern": "^[[:digit:]|]{2}$|b"}, ["1|", "||", "abc"], ["1", "a|", "(s"]),
        ({"type": "string", "pattern": "^[[:alpha:](]x$|^y$"}, ["ax", "(x", "y"], ["axx", "yy"]),
        ({"type": "string", "pattern": r"^\d[\w.]\D[^\d]\W$"}, ["1a-é!", "1.é!é"], ["٣a-é!", "1é-é!", "1a1é!"]),
        ({"type": "string", "pattern": r"^[\w-.]+@[\d-x]$"}, ["a-b.c@-", "_@9"], ["é@9", "a,@9", "a@1-"]),
        ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "x"]),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}], "type": "string"}, ["ba", "a"], ["b"]),  # the first alone
        ({"type": "string", "format": "uri", "maxLength": 50_000}, ["a:b"], ["a"]),
        ({"type": "string", "pattern": "(?=a)", "maxLength": 2}, ["b"], ["bbb"]),  # left to the model
        ({"type": "string", "pattern": "^a$|b^", "maxLength": 2}, ["b"], ["bbb"]),
        ({"type": "string", "pattern": "a", "maxLength": 5000}, ["b"], []),
        ({"type": "string", "pattern": "a", "maxLength": 1000}, ["ba"], ["b"]),
        ({"type": "string", "pattern": "b"}, ["<\n\nb<\n"], ["<\n"]),
        ({"enum": ["to", "two\nlines", ""]}, ["to", "two\nlines", ""], ["t", "tow"]),
        ({"enum": ["auto", 5, None, True]}, ["auto", "5", "null", "true"], ["6", "None", "false"]),
        ({"type": "integer", "minimum": 1}, ["5"], ["0", "5.5", "x", ""]),
        ({"type": "boolean"}, ["true", "false", "True", "False"], ["yes", "TRUE"]),
        ({"type": ["integer", "null"]}, ["5", "null", "None"], ["no"]),
        ({"type": ["string", "null"], "minLength": 2}, ["ab", "null"], ["a"]),
        ({"type": ["string", "integer"]}, ["a", "5"], []),
        (
            {"type": ["string", "array"], "items": {"type": "integer"}, "maxLength": 4},
            ["[1, 2, 3]", "[]", "a[1]", "", "abcd"],
            ["[a]", "[1,2]", " [1]", "abcde"],
        ),
        ({"type": ["string", "array"], "minLength": 2}, ["ab", "[]"], ["a", ""]),
        ({"type": "array", "items": {"$ref": "#/$defs/day"}}, ['["mon"]'], ['["tue"]', "[mon]"]),
        ({"$ref": "#/$defs/day"}, ["mon"], ["tue", '"mon"']),
        ({"type": "array", "items": {"$ref": "#/properties/a"}, "maxItems": 1}, ["[[]]", "[[[]]]"], ["[1]"]),
        ({"type": ["string", "number"], "enum": ["a", None, 5, 2.5]}, ["a", "5", "2.5"], ["null"]),
        ({"type": ["null", "integer"], "anyOf": [STRING, {"type": "number"}]}, ["1"], ["1.5", "x", "null"]),
        ({"type": "string", "minLength": 2, "anyOf": [{"maxLength": 3}, {"minLength": 1}]}, ["ab", "abcd"], ["a"]),
        (ONE_OF_TWO, ['{"k": 1, "x": 1}', '{"k": 1, "y": 2}'], ['{"x": 1}', '{"k": 1}']),
        ({}, ["5", "x", "[1"], []),
    ],
)  # fmt: skip
def test_a_value_is_what_the_schema_allows(name: str, schema: dict[str, Any], good: list[str], bad: list[str]) -> None:
    parameters = {"properties": {"a": schema}, "required": ["a"], "$defs": {"day": {"enum": ["mon"]}}}
    assert [text for text in good + bad if may_write(name, parameters, call(name, a=text))] == good


@TAGGED
def test_parameters_stand_in_the_schemas_order_and_those_not_named_behind_them(name: str) -> None:
    number = {"type": "integer"}
    named = {"type": "object", "properties": {"a": number, "b": number, "c": False}, "required": ["b", "d"]}
    more = {**named, "additionalProperties": number}
    for schema, arguments, expected in (
        (named, {"d": "1", "b": "2"}, True),
        (named, {"d": "1", "a": "1", "b": "2"}, True),
        (named, {"d": "1", "b": "2", "a": "1"}, False),
        (named, {"d": "1"}, False),
        (named, {"d": "1", "b": "2", "c": "1"}, False),
        (named, {"d": "1", "b": "2", "e": "1"}, False),
        (more, {"d": "1", "b": "2", "e": "1", "f g": "2"}, True),
        (more, {"d": "1", "b": "2", "e": "x"}, False),
        ({**more, "maxProperties": 4}, {"d": "1", "b": "2", "e": "1", "f": "2"}, False),
        ({"$ref": "#/$defs/all", "$defs": {"all": named}}, {"d": "1", "b": "2"}, True),
        ({"$ref": "#/$defs/all", "$defs": {"all": named}}, {"b": "2"}, False),
        ({"type": "object"}, {"x": "1", "y": "two"}, True),
        ({"type": "object", "patternProperties": {"^x": STRING}, "additionalProperties": False}, {"x": "two"}, True),
        ({"type": "object", "properties": {}}, {}, True),
        ({"type": "object", "properties": {}}, {"x": "1"}, False),
        ({"type": "object", "properties": {"a<b": number}}, {}, True),  # which cannot be written
    ):
        assert may_write(name, schema, call(name, **arguments)) is expected, (schema, arguments)


def test_glms_line_breaks_may_be_left_out() -> None:
    schema = {"properties": {"a": STRING}, "required": ["a"]}
    for text in (call("glm", a="x"), call("glm", a="x").replace("\n", "")):
        assert may_write("glm", schema, text)
    assert not may_write("qwen3-coder", schema, call("qwen3-coder", a="x").replace("\n", ""))


def test_no_text_holds_what_would_end_it() -> None:
    schema = {"properties": {"a": STRING, "b": {"enum": ["x\n</parameter>", "</parameter>", "y"]}}}
    assert not may_write("qwen3-coder", schema, call("qwen3-coder", a="x\n</parameter>\ny"))
    assert not may_write("qwen3-coder", schema, call("qwen3-coder", a="</parameter>"))
    assert may_write("qwen3-coder", schema, call("qwen3-coder", a="x</parameter>\n<parameter=b>"))
    assert may_write("qwen3-coder", schema, call("qwen3-coder", b="y"))
    assert not may_write("qwen3-coder", schema, call("qwen3-coder", b="</parameter>"))
    assert not may_write("glm", schema, call("glm", a="x</arg_value>y"))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"properties": []}, "properties is a mapping, and required a list"),
        ({"properties": {}, "required": True}, "properties is a mapping, and required a list"),
        ({"properties": {"a>b": {}}, "required": ["a>b"]}, "the name 'a>b' cannot stand between tags"),
        (
            {"properties": {"a": {"enum": ["</parameter>"]}}, "required": ["a"]},
            "no value of a parameter can stand between tags",
        ),
        (
            {"properties": {"a": {"type": "null", "enum": ["x"]}}, "required": ["a"]},
            "no value of a parameter can stand between tags",
        ),
        (
            {"properties": {"a": {"type": "string", "minLength": 2, "maxLength": 1}}, "required": ["a"]},
            "a text has at least 2 and at most 1 characters",
        ),
        ({"properties": {"a": STRING | {"minLength": "x"}}, "required": ["a"]}, "a text has at least 'x'"),
    ],
)
def test_parameters_that_no_call_can_have_are_refused(schema: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"The parameters of the tool 'f' cannot be enforced: {problem}"):
        may_write("qwen3-coder", schema, "")


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (
            {"properties": {}, "minProperties": 1},
            "'minProperties' cannot be enforced of all parameters of a call in tags",
        ),
        (
            {"properties": {"a": STRING | {"format": "regex"}}, "required": ["a"]},
            "'format' cannot be enforced in a text",
        ),
        ({"properties": {"a": STRING | {"pattern": "a$|b^"}}, "required": ["a"]}, "the pattern 'a$|b^' cannot be enf"),
        (
            {"properties": {"a": STRING | {"pattern": "x", "format": "email"}}, "required": ["a"]},
            "of several patterns and formats of a text one alone can be enforced",
        ),
    ],
)
def test_what_tags_cannot_hold_is_left_to_the_model_unless_the_tool_is_strict(schema: Any, problem: str) -> None:
    text = call("qwen3-coder", **dict.fromkeys(schema["properties"], "x"))
    assert may_write("qwen3-coder", schema, text)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        may_write("qwen3-coder", schema, text, strict=True)
    dated = {"properties": {"a": STRING | {"format": "date"}}, "required": ["a"]}
    assert may_write("qwen3-coder", dated, call("qwen3-coder", a="2024-02-29"), strict=True)


TRIP: dict[str, Any] = {
    "type": "object",
    "properties": {
        "to": {"type": "string", "maxLength": 6},
        "by": {"enum": ["train", "ship", None]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "via": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "array", "items": STRING, "maxItems": 1}]},
    },
    "required": ["to", "days"],
}


@TAGGED
def test_every_call_that_a_model_completes_fits_its_schema(name: str) -> None:
    schemas = {"go": TRIP, "free": {"type": "object", "maxProperties": 1}}
    tools = [{"name": tool, "parameters": schema} for tool, schema in schemas.items()]
    model = with_template(load(tiny_model_path()), name)
    # Ends of texts come sooner than by chance.
    ends = {id_: 3.0 for text in ("\n</parameter>", "</arg_value>", '"') for id_ in model.tokenizer.encode(text)}
    whole = 0
    for seed in range(4):
        config = GenerationConfig(max_new_tokens=300, temperature=1.0, seed=seed, logit_bias={**ends, 2: 6.0})
        answer = model.chat(QUESTION, config, tools=tools, tool_choice="required")
        assert answer.text == ""
        for made in answer.tool_calls[: None if answer.finish_reason == "tool_calls" else -1]:
            jsonschema.validate(json.loads(made.arguments), schemas[made.name])
            whole += 1
    assert whole >= 4


def test_tags_that_are_control_tokens_are_read_and_written_as_such() -> None:
    marks = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    model = model_with_marks(written("glm"), TEMPLATES["glm"], marks)
    assert set(tool_format(model.chat_template, model.tokenizer).control_ids) == set(marks)
    for choice in ("auto", "required"):
        answer = model.chat(QUESTION, tools=TOOLS, tool_choice=choice)  # type: ignore[arg-type]
        assert [(made.name, json.loads(made.arguments)) for made in answer.tool_calls] == [
            ("get_weather", {"city": "Oslo", "unit": "celsius"}), ("stop", {})
        ]  # fmt: skip
        ends = [id_ for id_ in answer.token_ids if id_ in model.tokenizer.control_token_ids]
        assert len(ends) >= 12
    constraint = tool_constraint(TOOLS, "required", tool_format(model.chat_template, model.tokenizer))
    assert constraint is not None
    matcher = constraint.compile(model.tokenizer)
    for id_ in model.tokenizer.encode(written("glm").partition("Oslo")[0], control_tokens=True):
        matcher.advance(id_)
    for id_ in model.tokenizer.encode("Oslo</arg_value>"):  # in letters, it ends the text too
        matcher.advance(id_)
    with pytest.raises(EdgeLMError, match="cannot be followed"):
        matcher.advance(model.tokenizer.encode("x")[0])
    number = {"name": "f", "parameters": {"properties": {"a": {"type": "string", "pattern": "[0-9]"}}}}
    constraint = tool_constraint([number], "required", tool_format(model.chat_template, model.tokenizer))
    assert constraint is not None
    begun = model.tokenizer.encode("<tool_call>f<arg_key>a</arg_key><arg_value>", control_tokens=True)
    for text, is_allowed in (("x</arg_value1", True), ("x1</arg_value>", True), ("x</arg_value>1", False)):
        matcher = constraint.compile(model.tokenizer)
        ids = [*begun, *model.tokenizer.encode(text)]
        allowed = matcher._matcher.validate_tokens(ids) == len(ids)
        assert allowed == is_allowed, text


@pytest.mark.parametrize(
    ("format_", "good", "bad"),
    [
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567e89b12d3a456426614174000"]),
        ("ipv4", ["192.168.0.1", "255.255.255.255"], ["256.1.1.1", "1.1.1", "01.1.1.1"]),
        ("ipv6", ["2001:db8:0:0:0:0:2:1"], ["2001:db8", "1:2:3:4:5:6:7:8:9"]),
        ("hostname", ["example.org", "a-b.c"], ["-a.b", "a..b", ""]),
        ("email", ["a.b+c@example.org"], ["a@b", "a.example.org", "a b@c.de"]),
        ("duration", ["P1Y2M", "P3D", "PT5M", "P1DT2H3M4S", "P2W"], ["P", "PT", "P1S", "1D"]),
        ("uri", ["https://example.org/a?b=c%20d#e", "mailto:a@b.c"], ["example", "http://a b", "http://a%2"]),
    ],
)
def test_the_formats_of_strict_tools_are_enforced(format_: str, good: list[str], bad: list[str]) -> None:
    schema = {"properties": {"a": STRING | {"format": format_}}, "required": ["a"], "additionalProperties": False}
    checker = jsonschema.FormatChecker()
    for text in good + bad:
        assert may_write("glm", schema, call("glm", a=text), strict=True) == (text in good), text
    for text in good:
        assert checker.conforms(text, format_)


def test_a_tool_whose_name_no_call_can_have_is_refused() -> None:
    for name in ("say it", "f>", "f" * 257):
        with pytest.raises(
            ConfigError, match=r"The tool's name .* cannot stand in a call as this model writes it, in tags"
        ):
            tool_constraint([{"name": name}], "auto", row("glm"))

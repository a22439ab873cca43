"""Calls of tools as Python writes them: what is read of them, and what may be written."""

import ast
import json
import random
from typing import Any

import jsonschema
import pytest
from tool_families import QUESTION, accepts, must_call, row, taken, with_template

from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.loading import load
from edgelm.structure.python_call_reader import PythonCallReader
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tools import tool_constraint
from edgelm.testing import tiny_model_path


def read(call: str) -> tuple[str | None, str, bool]:
    """Return the name of a call, its arguments, and whether it is whole."""
    reader = PythonCallReader()
    for char in call:
        if not reader.push(char):
            assert not reader.is_closed
            return reader.name, reader.arguments, False
    return reader.name, reader.arguments, reader.is_closed


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("f()", "{}"),
        ("f( )", "{}"),
        ('f(city="Oslo", days=2)', '{"city": "Oslo", "days": 2}'),
        ("f(\n  city = 'Oslo',\n  days = 2,\n)", '{"city": "Oslo", "days": 2}'),
        ("f(a=True, b=False, c=None, d=true, e=false, f=null)",
         '{"a": true, "b": false, "c": null, "d": true, "e": false, "f": null}'),
        ("f(a=-1, b=+2, c=1.50, d=-.5, e=5., f=1e3, g=0x1F, h=1_000, i=007)",
         '{"a": -1, "b": 2, "c": 1.50, "d": -0.5, "e": 5.0, "f": 1e3, "g": 31, "h": 1000, "i": 7}'),
        ("f(a=[], b=[1, [2, 'x'],], c={}, d={'k': {'l': [None]},}, e=(), f=(1, 2), g=(1,))",
         '{"a": [], "b": [1, [2, "x"]], "c": {}, "d": {"k": {"l": [null]}}, "e": [], "f": [1, 2], "g": [1]}'),
        ("f(a={1: 'x', True: 'y', 'z' : 1})", '{"a": {"1": "x", "true": "y", "z": 1}}'),
        ("f(a='say \"hi\"', b=\"it's\", c='')", '{"a": "say \\"hi\\"", "b": "it\'s", "c": ""}'),
        (r"""f(a='\'\"\\\n\r\t\b\f\v\a\x41\u00e9\U0001F600\101\0z')""",
         json.dumps({"a": "'\"\\\n\r\t\b\f\v\aAé😀A\0z"}, ensure_ascii=False)),
        (r"""f(a='\d+\.\/', b='\x4', c='\uD', d='\U00110000', e='\1', f='\18')""",
         json.dumps({"a": r"\d+\.\/", "b": r"\x4", "c": r"\uD", "d": r"\U00110000", "e": "\1", "f": "\0018"})),
        (r"""f(a="\ud83d\ude00", b="\ud800")""", r'{"a": "\ud83d\ude00", "b": "\ud800"}'),
        ("f(a='one\ntwo\\\nthree')", '{"a": "one\\ntwothree"}'),
        ('f(a="""one "two" ""three""\n""", b=\'\'\'\'\'\')', '{"a": "one \\"two\\" \\"\\"three\\"\\"\\n", "b": ""}'),
        (r"""f(a=r'\d\'', b=R"")""", json.dumps({"a": r"\d\'", "b": ""})),
        ('f(**{"a b": 1, "c": {"d": 2}})', '{"a b": 1, "c": {"d": 2}}'),
        ('f(a=1, ** { "b": 2 }, c=3)', '{"a": 1, "b": 2, "c": 3}'),
        ("f(**{})", "{}"),
        ('f(**{"a": 1}, b=2)', '{"a": 1, "b": 2}'),
        ("f(user-id=1, $top=2, from=3, é=4)", '{"user-id": 1, "$top": 2, "from": 3, "é": 4}'),
    ],
)  # fmt: skip
def test_a_call_with_literals_is_read_as_json(call: str, arguments: str) -> None:
    assert read(call) == ("f", arguments, True)
    json.loads(arguments)


def test_what_python_writes_of_values_is_read_as_python_reads_it() -> None:
    draw = random.Random(0)

    def value(depth: int) -> Any:
        kind = draw.randrange(8 if depth else 6)
        if kind < 2:
            return "".join(
                draw.choice("ab'\"\\\n\t{}[](),:= é漢😀\x00\x7f\u2028\ud800") for _ in range(draw.randrange(9))
            )
        if kind < 6:
            return draw.choice([True, False, None, 0, -7, 10**30, 0.1, -2.5e-300, 1e22])
        if kind == 6:
            return [value(depth - 1) for _ in range(draw.randrange(4))]
        return {value(0) if draw.random() < 0.2 else str(i): value(depth - 1) for i in range(draw.randrange(4))}

    for _ in range(400):
        values = {f"p{i}": value(3) for i in range(draw.randrange(5))}
        call = f"f({', '.join(f'{name}={each!r}' for name, each in values.items())})"
        in_python = {name: ast.literal_eval(repr(each)) for name, each in values.items()}
        name, arguments, is_whole = read(call)
        assert (name, is_whole) == ("f", True)
        assert json.loads(arguments) == json.loads(json.dumps(in_python))


@pytest.mark.parametrize("style", [{"ensure_ascii": True}, {"ensure_ascii": False}, {"indent": 1}])
def test_values_in_json_are_python_too(style: dict[str, Any]) -> None:
    values = {"s": "\"'\\/\n\x01é😀", "n": [1, -2.5e3, 0], "b": [True, None], "o": {"": {"x": []}}}
    call = ", ".join(f"{name}={json.dumps(each, **style)}" for name, each in values.items())
    name, arguments, is_whole = read(f"f({call})")
    assert (name, json.loads(arguments), is_whole) == ("f", values, True)


@pytest.mark.parametrize(
    "call",
    [
        "f(1)", "f('a')", "f('a', b=1)", "f(x)", "f(a=x)", "f(a=g())", "f(a=g(b=1))", "f(a=__import__('os'))",
        "f(*[1])", "f(**x)", "f(* *{})", "f(***{})", "f(** a=1)", "f(a=)", "f(a==1)", "f(a b=1)", "f(=1)", "f(,)",
        "f(a)", "f(a=b'x')", "f(a=f'x')", "f(a=1j)", "f(a=inf)", "f(a=nan)", "f(a=--1)", "f(a=1.e999)", "f(a=...)",
        "f(a=0x)", "f (a=1)", "f\n(a=1)", "(a=1)", "f[0](a=1)", "f;g(a=1)", "f{", "f(a=`1`)", "f(a=@)",
        "f" * 257 + "()", f"f({'a' * 257}=1)", f"f(a{' ' * 300}=1)", f"f(a={'1' * 300})",
    ],
)  # fmt: skip
def test_what_is_no_call_with_literals_has_no_name(call: str) -> None:
    name, _, is_whole = read(call)
    assert (name, is_whole) == (None, False)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("f(a=1, 2)", '{"a": 1 2)'),
        ("f(a=1, 2}", '{"a": 1 2}'),
        ("f(a=1, b=x)", '{"a": 1, "b":  x)'),
        ("f(a=1, b c=2)", '{"a": 1 b c=2)'),
        ("f(a=1, **x)", '{"a": 1 **x)'),
        ("f(a=1 + 2)", '{"a": 1 + 2)'),
        ("f(a='x'.upper())", '{"a": "x" .upper())'),
        ("f(a='x' 'y')", """{"a": "x" 'y')"""),
        ("f(a=[i for i in x], b=1)", '{"a": [ i for i in x], b=1)'),
        ("f(a=[1 for i in x], b=1)", '{"a": [1 for i in x], b=1)'),
        ("f(a={1, 2})", '{"a": {"1" , 2})'),
        ("f(a={'b'})", '{"a": {"b" })'),
        ("f(a={[1]: 2})", '{"a": { [1]: 2})'),
        ("f(a={'b': })", '{"a": {"b":  })'),
        ("f(a=[,])", '{"a": [ ,])'),
        ("f(a=(1))", '{"a": [1 ))'),  # which is no tuple
        ("f(a=[1:2])", '{"a": [1 :2])'),
        ("f(a=1; b=2)", '{"a": 1 ; b=2)'),
        ("f(a='print('hello')')", """{"a": "print(" hello')')"""),
    ],
)
def test_a_call_that_breaks_off_has_the_rest_as_it_stands(call: str, arguments: str) -> None:
    assert read(call) == ("f", arguments, True)
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("f(a='it's')] and more", """{"a": "it" s')] and more"""),
        ("f(a='" + "x" * 1000, '{"a": "' + "x" * 1000),
        ("f(a='\\", '{"a": "'),
        ("f(a=" + "[" * 100_000, '{"a": ' + "[" * 63 + " " + "[" * 99_937),
        ("f(a=" + "{'b': " * 100, '{"a": ' + '{"b": ' * 63 + " " + "{'b': " * 37),
        (f"f(a=1, b={'1' * 255}", '{"a": 1, "b": '),
        (f"f(a=1, b={'1' * 300}", '{"a": 1, "b":  ' + "1" * 300),
        (f"f(a=1, b{' ' * 300}", '{"a": 1 b' + " " * 300),
    ],
)
def test_a_call_that_does_not_end_has_what_came_of_it(call: str, arguments: str) -> None:
    assert read(call) == ("f", arguments, False)


A, B = ("f", '{"a": "(]"}'), ("g.h-i", "{}")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("lfm2", "<|tool_call_start|>[f(a='(]'), g.h-i()]<|tool_call_end|>Let me see.", ("Let me see.", [A, B])),
        ("lfm2", "Hm. <|tool_call_start|>[f(a='(]')]<|tool_call_end|> So.", ("Hm. So.", [A])),
        ("lfm2", "<|tool_call_start|>f(a='(]')<|tool_call_end|><|tool_call_start|>[g.h-i()]", ("", [A, B])),
        ("lfm2", "<|tool_call_start|> [\nf(a='(]'),\ng.h-i(),\n]\n<|tool_call_end|>", ("", [A, B])),
        ("lfm2", '<|tool_call_start|>[{"name": "f", "arguments": {"a": "(]"}}]<|tool_call_end|>', ("", [A])),
        ("lfm2", "<|tool_call_start|>[f(a=1, 2)]<|tool_call_end|>x", ("x", [("f", '{"a": 1 2)')])),
        ("olmo3", "<function_calls>f(a='(]')\ng.h-i()</function_calls>", ("", [A, B])),
        ("olmo3", "<function_calls>\nf(a='(]')\n\ng.h-i()\n</function_calls>\nSo.", ("\nSo.", [A, B])),
        ("olmo3", "<function_calls>f(a='(]')</function_calls>\n<function_calls>g.h-i()</function_calls>", ("", [A, B])),
        ("olmo3", "<function_calls>f(a='(]')\ng.h-i(", ("", [A])),  # whose second call is cut off
        *(
            ("olmo3", text, (text, []))
            for text in (
                "<function_calls>f(1)</function_calls>",
                "<function_calls>f(x)\nf(a=1)</function_calls>",
                "Write <function_calls>f(city=...)</function_calls>.",
                "<function_calls></function_calls>",
                "<function_calls>f(a",
                "<function_calls>f",
                "f(a=1)",
                "[f(a=1)]",
            )
        ),
    ],
)
def test_calls_are_told_from_text_whatever_the_pieces(
    name: str, text: str, expected: tuple[str, list[tuple[str, str]]]
) -> None:
    reason = "tool_calls" if expected[1] else "stop"
    splits = [[text[:place], text[place:]] for place in range(len(text))]
    for pieces in (list(text), *splits):
        assert taken(name, pieces) == (*expected, reason)


def test_a_text_is_handed_on_while_it_is_written() -> None:
    parser = ToolCallParser(row("lfm2"))
    parser.push("<|tool_call_start|>[f(a='")
    assert [parser.push(char)[1][0].arguments for char in "x\n'"] == ["x", "\\n", '"']


def may_write(tool: dict[str, Any], call: str) -> bool:
    """Say whether a model that must call may write this, and nothing after it."""
    return accepts(must_call(tool, "lfm2", parallel=True), f"<|tool_call_start|>[{call}]<|tool_call_end|>")


PLACE = {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}
TRIP: dict[str, Any] = {
    "title": "Trip",
    "type": "object",
    "properties": {
        "to": {"type": "string"},
        "days": {"type": "integer", "minimum": 1},
        "via": {"type": "array", "items": {"$ref": "#/$defs/Place"}},
        "user-id": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["days"],
    "$defs": {"Place": PLACE},
}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("go(days=2)", True),
        ('go(to="Oslo", days=2)', True),
        ('go(to="Oslo", days=2, via=[{"lat": 1.5}, {"lat": 2}], user-id=null)', True),
        ('go(days=2, user-id="x")', True),
        ('go(to="Oslo")', False),  # without what is required
        ('go(days=2, to="Oslo")', False),  # another order
        ("go(days=2, days=3)", False),
        ("go(days=0)", False),
        ("go(days=2, via=[{}])", False),
        ('go(days=2, via=[{"lat":2}])', False),  # where the schema does not say that white space is free
        ("go(days=2, more=1)", False),
        ("go()", False),
        ("go(2)", False),
        ("stay()", False),
        ("go(days=2), go(days=3)", True),
    ],
)
def test_a_model_writes_the_parameters_of_the_schema_in_its_order(call: str, expected: bool) -> None:
    assert may_write({"name": "go", "parameters": TRIP}, call) is expected


@pytest.mark.parametrize(
    ("parameters", "call"),
    [
        (None, "go()"),
        ({"type": "object", "properties": {}}, "go()"),
        ({"type": "object"}, 'go(**{"a": 1})'),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, 'go(**{"a": 1})'),
        ({"properties": {"a b": {"type": "integer"}}}, 'go(**{"a b": 1})'),
        ({"properties": {"a": True}}, 'go(**{"a": 1})'),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a", "b"], "additionalProperties": True},
         'go(**{"a": 1, "b": 2})'),
        ({"properties": {"a": {"type": "integer"}}, "minProperties": 1}, 'go(**{"a": 1})'),
        ({"properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}}}, 'go(**{"a": 1, "b": 2})'),
        ({"$ref": "#/$defs/P", "$defs": {"P": PLACE}}, 'go(**{"lat": 1})'),
        ({"properties": {"a": {"$ref": "#/definitions/P"}}, "definitions": {"P": PLACE}}, 'go(a={"lat": 1})'),
        ({"properties": {"a": {"type": "integer"}}, "additionalProperties": True}, "go(a=1)"),
    ],
)  # fmt: skip
def test_what_parameters_cannot_say_one_by_one_is_written_as_a_mapping(parameters: Any, call: str) -> None:
    tool = {"name": "go", **({} if parameters is None else {"parameters": parameters})}
    assert may_write(tool, call)
    assert may_write(tool, 'go(**{"z": "z"})') == (parameters == {"type": "object"})


@pytest.mark.parametrize("parameters", [{"properties": []}, {"properties": {"a": {}}, "required": True}])
def test_parameters_that_are_no_schema_are_refused_in_python_too(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="The JSON schema of a tool, or in a grammar, cannot be enforced"):
        may_write({"name": "go", "parameters": parameters}, "go()")


def test_a_tool_whose_name_no_call_can_have_is_refused() -> None:
    for name in ("say it", "f(x)", '"f"', "f" * 257):
        with pytest.raises(ConfigError, match=r"The tool's name .* cannot stand in a call as this model writes it"):
            tool_constraint([{"name": name}], "auto", row("olmo3"))


@pytest.mark.parametrize("name", ["lfm2", "olmo3"])
def test_every_call_that_a_model_completes_fits_its_schema(name: str) -> None:
    properties = {**TRIP["properties"], "to": {"type": "string", "maxLength": 6}}
    schemas = {"go": {**TRIP, "properties": properties}, "free": {"type": "object", "maxProperties": 2}}
    tools = [{"name": name, "parameters": schema} for name, schema in schemas.items()]
    model = with_template(load(tiny_model_path()), name)
    whole = 0
    for seed in range(4):
        config = GenerationConfig(max_new_tokens=200, temperature=1.0, seed=seed)
        answer = model.chat(QUESTION, config, tools=tools, tool_choice="required")
        assert answer.text == ""
        for call in answer.tool_calls[: None if answer.finish_reason == "tool_calls" else -1]:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
            whole += 1
    assert whole >= 4

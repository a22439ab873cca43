"""Patterns of grammars, against the grammars themselves as llguidance follows them."""

from __future__ import annotations

import json

import pytest
from constraint_texts import accepts

from edgelm.structure.constraint import Constraint
from edgelm.structure.regular_grammar import pattern_of
from edgelm.structure.schema_patterns import in_all_scripts
from edgelm.text.tokenizer import Tokenizer

GRAMMARS = [
    (r'start: a~2..3 b{2} [c]' '\n  | "z" -> zed\na: "a" | "b"\nb: "\\x41" | "B"\n?c: ("c" "d")* // more',
     ["abABcd", "z", "abaAA", "aBB", "aABB"]),
    (r'start: /[^"]+/ "\n"? # one', ["a\n", "\\", '"', "}"]),
    (r'start: /a.b/s /[x-z]/i', ["a\nbY", "abbz", "A\nby"]),
    (r'start: "a\"\\\n"i', ['A"\\\n', 'a"\\N']),
    (r'start: A+' '\nA: "$".."~"', ["a|\\z", "#"]),
    ("start: INT LF ESCAPED_STRING\n%import common.INT\n%import common.LF\n%import common.ESCAPED_STRING",
     ['12\n"a\\"b"', '12"a"', '1\n"a']),
    ('start: N{,2} "\\x41".."\\u0043"' "\n%import common.DIGIT -> N", ["12B", "A", "123C", "1D"]),
    (r'start: /[\]\/"\\]{2}\}/ /\x22/', ['"]}"', '\\/}"', 'a"}"']),
    (r"start: /\w\d[\d.]\W\D[\w-][^\W]/", ["é߀߀!é漢a", "a1.-x-1", "é1.漢xжa", "!1.!xжa", "é1.!߀жa", "é1.!xж!"]),
]  # fmt: skip


@pytest.mark.parametrize(("grammar", "texts"), GRAMMARS)
def test_a_pattern_takes_the_texts_of_its_grammar_in_json_too(
    tokenizer: Tokenizer, grammar: str, texts: list[str]
) -> None:
    lark, pattern = Constraint.lark(grammar), f"^(?:{in_all_scripts(pattern_of(grammar))})$"
    schema = Constraint.json_schema({"type": "string", "pattern": pattern})
    taken = [accepts(lark, tokenizer, text) for text in texts]
    assert [accepts(schema, tokenizer, json.dumps(text, ensure_ascii=False)) for text in texts] == taken
    assert set(taken) == {True, False}

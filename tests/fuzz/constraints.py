"""The forms that an answer may be held to: JSON schemas, regular expressions, and grammars in GBNF and Lark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from fuzz.mutations import mutate_bytes, mutate_json

from edgelm.errors import ConfigError
from edgelm.structure.constraint import Constraint
from edgelm.structure.constraint_matcher import check_form
from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer

_SCHEMAS = (
    {"type": "object", "required": ["a", "b"],
     "properties": {"a": {"enum": [1, "x", None]}, "b": {"$ref": "#/$defs/b"}},
     "additionalProperties": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 7, "multipleOf": 0.5},
     "maxProperties": 3,
     "$defs": {"b": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 1, "maxItems": 4}}},
    {"anyOf": [{"type": "string", "pattern": r"^[a-z]{1,5}(x|[]\x00-\x1f\p{Lu}])+[^\]]$", "minLength": 1,
                "maxLength": 9},
               {"type": "string", "format": "date-time"}, {"const": [1, {"k": True}]}], "description": "x"},
    {"type": ["array", "null"], "prefixItems": [{"type": "integer"}, {"allOf": [{"type": "string"}, {"minLength": 2}]}],
     "items": False, "oneOf": [{"minItems": 1}], "patternProperties": {"^a": {"type": "boolean"}}},
)  # fmt: skip
_TEXTS = (
    ("regex", r"(?i)[a-f0-9]{1,20}(\.\d+)?|(?:x|yy)*z\p{L}[^\s\w]?"),
    ("gbnf", 'root ::= item+ "end" # comment\nitem ::= [a-z0-9]{2,4} | "\\x41" (digit | [^"\\n])*\ndigit ::= [0-9]?\n'),
    (
        "lark",
        'start: item+ END | %json {"type": "integer"}\nitem: /[a-z]+/ "," | WORD~2..3\nWORD: /\\w/\nEND: "end"i\n',
    ),
)
_FRAGMENTS = (
    "(", ")", "[", "]", "{", "}", "{1,1000}", "{0,99999999}", "*", "+", "?", "|", "::=", "\n", "root", "start", "\\",
    '"', "/", "(?=x)", "(?<=x)", "\\b", "^", "$", "\\p{Greek}", "\\u{10ffff}", "(?P<a>", "(" * 300, "[" * 300,
    "a|" * 300, "&", "~", "-", "\\x", "\\ud800", "%json {", "%llguidance {}", "%ignore /x/", "%import common.INT",
    "<[1]>", "@x", "\0", "item", "digit", ".", "(.{0,50}){50}", "(((a*)*)*)*", "#", "{9999999999999999999999}",
)  # fmt: skip


def prepare(_folder: Path) -> Sequence[bytes]:
    """Return forms: their kind in the first line, then the source."""
    schemas = [b"json_schema\n" + json.dumps(schema).encode() for schema in _SCHEMAS]
    return schemas + [f"{kind}\n{text}".encode() for kind, text in _TEXTS]


def mutate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Change values of a schema, or put pieces of the languages anywhere into a text."""
    kind, _, source = data.partition(b"\n")
    if kind == b"json_schema":
        return kind + b"\n" + mutate_json(source, random)
    text = source.decode()
    for _ in range(random.choice((1, 2, 4, 8))):
        place = random.randrange(len(text) + 1)
        piece = random.choice(_FRAGMENTS)
        text = text[:place] + piece * random.choice((1, 1, 1, 2)) + text[place + random.choice((0, 0, len(piece))) :]
    source = text.encode()
    return kind + b"\n" + (mutate_bytes(source, random) if random.random() < 0.2 else source)


def read(path: Path) -> None:
    """Make a form, and hold an answer to it."""
    kind, _, source = path.read_bytes().partition(b"\n")
    text = source.decode("utf-8", "replace")
    if kind == b"json_schema":
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(str(error)) from error
        constraint = Constraint.json_schema(schema, strict=len(text) % 2 == 0)
    else:
        constraint = getattr(Constraint, kind.decode("utf-8", "replace"))(text)
    follow(constraint)


def follow(constraint: Constraint) -> None:
    """Compile a form, and follow it for a few tokens."""
    check_form(constraint)
    matcher = constraint.compile(_tokenizer(), [2])
    for _ in range(4):
        logits = np.linspace(1, 0, _tokenizer().vocab_size, dtype=np.float32)
        matcher.mask(logits)
        token = int(logits.argmax())
        if token == 2:
            break
        matcher.forced()
        matcher.advance(token)


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.load(tiny_model_path())

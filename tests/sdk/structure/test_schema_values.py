"""Values in JSON schemas that llguidance would write as others: written as they are, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from constraint_texts import accepts

from edgelm.errors import ConfigError
from edgelm.structure.constraint import Constraint
from edgelm.text.tokenizer import Tokenizer

BITS_64 = {"minimum": -(2**63), "maximum": 2**63 - 1}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "integer", **BITS_64}, [0, -(10**18), 10**18], [2**63, -(2**63) - 1]),
        ({"type": ["integer", "null"], **BITS_64}, [None, 12], [2**63]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [2**62], [-1, 2**64]),
        ({"type": "integer", "minimum": 2**53 + 1, "maximum": 2**60}, [2**53 + 2, 2**60], [2**53, 2**60 + 1]),
        ({"type": "integer", "exclusiveMinimum": 2**59}, [2**60], [2**59]),
        ({"type": "integer", "minimum": 2**62}, [2**62, 2**63 - 1024], [2**62 - 1, -1]),
        ({"type": ["integer", "null"], "maximum": 1 - 10**18}, [None, -(10**18)], [2 - 10**18, 1]),
        ({"type": "integer", "minimum": 2**63 - 1024}, [2**63 - 1024], [2**63 - 1025]),
        ({"type": "integer", "maximum": -(2**53) - 1, "minimum": -(10**30)}, [-(2**53) - 2], [-(2**53)]),
        ({"type": "number", "minimum": 2**53 + 1, "maximum": 10**16}, [9.5e15], [2**53]),
        ({"type": "number", "maximum": 1234567890.1234567}, [1234567890.0], [1234567890.1235]),
        ({"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}, [10**17, -0.5], []),
        ({"maximum": 1.7976931348623157e308, "exclusiveMinimum": -(10**400)}, ["a", 0.5, -(10**17)], []),
        ({"type": "integer", "minimum": -(10**400), "exclusiveMaximum": 10**400}, [2**62], [0.5]),
        ({"enum": [10**18, 2**53, 0.5, 1e-7]}, [10**18, 2**53, 0.5], [10**18 + 1]),
    ],
)  # fmt: skip
def test_bounds_beyond_what_a_float_counts_are_kept(
    tokenizer: Tokenizer, schema: dict[str, Any], valid: list[Any], invalid: list[Any]
) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    constraint = Constraint.json_schema(schema)
    for value in valid + invalid:
        assert validator.is_valid(value) == (value in valid)
        text = json.dumps(value) if not isinstance(value, float) else f"{value:f}".rstrip("0").rstrip(".")
        assert accepts(constraint, tokenizer, text) == (value in valid)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"enum": [1, 1234567890123456789]}, "enum has 1234567890123456789, which has more digits than"),
        ({"properties": {"a": {"const": {"id": [2**53 + 1]}}}}, "const has 9007199254740993, which has more digits"),
        ({"const": 123456789.12345679}, "const has 123456789.12345679, which has more digits than"),
        ({"const": 7802749205078041.0}, "const has 7802749205078041.0, which has more digits than"),
        ({"const": 5.369963527750256e-247}, "const has 5.369963527750256e-247, which has more digits than"),
        ({"const": 10**400}, r"const has 10{17}\.\.\.0{19}, which has more digits than are followed"),
        ({"const": {"a": ["b\x01"]}}, r"const has 'b\\x01', which has a control character that is not written"),
        ({"enum": ["\n", "\x7f"]}, r"enum has '\\x7f', which has a control character"),
        ({"pattern": "^a\x01?$"}, r"the pattern '\^a\\x01\?\$' has '\\x01', a control character that is not written"),
        ({"pattern": r"[a]\x{007f}|b"}, r"has '\\\\x\{007f\}', a control"),
        ({"patternProperties": {r"[^a[\x02]][\u000b]": {}}}, r"has '\[\\\\u000b\]', a control"),
        ({"type": "integer", "minimum": 10**19}, "minimum is 10000000000000000000, and integers are followed up to"),
        ({"type": ["number", "null"], "minimum": 1e20}, r"minimum is 1e\+20, and numbers are followed up to 18"),
        ({"exclusiveMaximum": -(10**19)}, "exclusiveMaximum is -10000000000000000000, and numbers are"),
        ({"type": "integer", "exclusiveMaximum": -(2**63)}, "exclusiveMaximum is -9223372036854775808, and integers"),
    ],
)
def test_values_that_would_be_others_are_refused_or_passed_over(
    tokenizer: Tokenizer, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Constraint.json_schema(schema)
    Constraint.json_schema(schema, strict=False).compile(tokenizer)


# \\p and [:…:] are not in Python's patterns, which jsonschema has.
@pytest.mark.parametrize("pattern", [r"^a\p{Cc}$", r"^a[[:cntrl:]]$", r"^a\P{P}$", r"^a[\x09\x0d\x1f\p{Cc}]$"])
def test_a_set_with_all_control_characters_takes_no_quotation_mark(tokenizer: Tokenizer, pattern: str) -> None:
    constraint = Constraint.json_schema({"type": "string", "pattern": pattern})
    assert [accepts(constraint, tokenizer, json.dumps(text)) for text in ("a\n", 'a"', "a\\")] == [True, False, False]


def test_a_set_with_unwritten_control_characters_alone_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"no text has this form.* or for a set of control characters alone"):
        Constraint.json_schema({"type": "string", "pattern": r"^a[\x00-\x07]$"}).compile(tokenizer)

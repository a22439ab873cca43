"""Schema gaps: what llguidance takes in a JSON schema but does not fully enforce, made up for or refused."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import quote

from edgelm.errors import ConfigError
from edgelm.structure.schema_depth import refuse_depth
from edgelm.structure.schema_names import close_names
from edgelm.structure.schema_patterns import close_patterns, drop_patterns
from edgelm.structure.schema_values import close_bounds, drop_values, refuse_values

_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_LISTED_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")  # the last of them up to draft 2019-09
_VALUES = ("const", "default", "example")  # what they hold is no schema
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
# What says whether an object has properties beside those named, and what describes an object, besides `allOf`.
_OF_OTHERS = ("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames", "minProperties")
_PLACES = ("properties", "anyOf", "oneOf", "$ref", "$dynamicRef", "if", "dependentSchemas")
# With a thousand such properties llguidance 1.9 takes 60 ms for a token, for multiples of 100,000 states 0.5 s once;
# both grow with the square. Of the ways that ConstraintMatcher follows at one place, each such property makes four, and
# each object or list of an enum one.
_MOST_OPTIONAL, _MOST_COMPOUND, _MOST_MULTIPLES, _MOST_DIGITS = 1_000, 4_000, 100_000, 30
_DATE = (
    r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # Python knows no year 0
    r"-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# llguidance takes 29 February of every year, and a 61st second in every minute.
_FORMATS = {"date": f"^(?:{_DATE})$", "time": f"^{_TIME}$", "date-time": f"^(?:{_DATE})[Tt ]{_TIME}$"}
# What may stand in a reference beside letters and digits (RFC 3986); a percent sign only before two hexadecimal digits.
_IN_REFERENCES = "%!$&'()*+,;=:@/?"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?://\[[0-9A-Fa-f:.]+\])?")  # with an address of IPv6 behind it
_DIALECT = re.compile(
    r"(?:http://json-schema\.org/draft-0[467]|https://json-schema\.org/draft/20(?:19-09|20-12))/schema#?$|$"
)
_LONE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")


def close_gaps(schema: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """Return a schema with the same meaning, or a narrower one, that llguidance 1.9 enforces as it stands.

    strict: whether what it cannot enforce is an error; else that is left out, and objects are closed.

    Raises:
        ConfigError: a number has more digits than llguidance reads; `minProperties` needs more than it can; what
            `multipleOf` asks for, properties that may be left out, or an enum's objects, would take it too long; or
            references lead deeper than it follows them.
    """
    if not strict:
        schema = _close_objects(_loosen(schema))
    _refuse_multiples(schema)
    refuse_depth(schema)
    return _closed(schema, schema)


def _closed(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    closed = with_parts(schema, lambda part: _closed(part, whole))
    close_names(closed, schema.get("propertyNames"), whole)
    for close in (
        refuse_values, close_bounds, _close_format, close_patterns, _close_references, _refuse_count, _refuse_optional,
        _refuse_enum,
    ):  # fmt: skip
        close(closed)
    return closed


def _close_references(part: dict[str, Any]) -> None:
    """Encode what no URI may have: programs make references and ids of titles, types and properties' names as they are,
    such as `#/$defs/List[City]`.
    """
    for key in ("$id", "$ref"):
        if isinstance(part.get(key), str):
            base, mark, fragment = _LONE_PERCENT.sub("%25", part[key]).partition("#")
            scheme = found[0] if (found := _SCHEME.match(base)) else ""
            path = quote(base.removeprefix(scheme), safe=_IN_REFERENCES)
            if not scheme:  # what stands before a colon would be one
                path = path.replace(":", "%3A")
            part[key] = scheme + path + mark + quote(fragment, safe=_IN_REFERENCES)


def _loosen(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without what llguidance's option `lenient` does not pass over: keywords that are null (programs
    that leave none out write them), dialects and patterns that it cannot read, and numbers and counts of properties
    that `close_gaps` refuses.
    """
    loose = {key: part for key, part in with_parts(schema, _loosen).items() if part is not None or key in _VALUES}
    if not (isinstance(dialect := loose.get("$schema", ""), str) and _DIALECT.match(dialect)):
        del loose["$schema"]
    drop_values(loose)
    drop_patterns(loose, _reads)
    if _counts_too_far(loose):
        del loose["minProperties"]
    return loose


def _close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no properties beside those that it names, as llama.cpp, Ollama and vLLM read
    one that does not say: small models make up name after name else.

    Where the schema says anything of others, or describes an object in several places, which would shut out each
    other's properties, it stays as it is.
    """
    composes = False

    def closed(part: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal composes
        composes |= _describes_in_several_places(part)
        result = with_parts(part, closed)
        named = result.get("properties")
        if isinstance(named, dict) and not any(key in result for key in _OF_OTHERS):
            required = result.get("required", ())
            if isinstance(required, (list, tuple)) and all(
                isinstance(name, str) and name in named for name in required
            ):
                result["additionalProperties"] = False
        return result

    result = closed(schema)
    return dict(schema) if composes else result


def _describes_in_several_places(schema: Mapping[str, Any]) -> bool:
    parts = schema.get("allOf")
    return (len(parts) if isinstance(parts, (list, tuple)) else 0) + sum(key in schema for key in _PLACES) > 1


def _reads(pattern: str) -> bool:
    """Say whether llguidance can read a pattern: of JavaScript's it has no look-around and no backreferences."""
    schema = json.dumps({"type": "string", "pattern": pattern})
    return takes(lambda matcher: matcher.grammar_from_json_schema(schema))


def takes(grammar: Callable[[Any], str]) -> bool:
    """Say whether llguidance takes a grammar, made by its LLMatcher; where it is missing, the matcher says that."""
    if importlib.util.find_spec("llguidance") is None:
        return True
    from llguidance import LLMatcher

    return not LLMatcher.validate_grammar(grammar(LLMatcher))


def with_parts(schema: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Return a schema with each schema inside it changed, and with 5.0, which JSON Schema takes for a count, as 5.

    Raises:
        TypeError: a key is no text.
    """

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Mapping) else value

    result: dict[str, Any] = {}
    for key, value in schema.items():
        if not isinstance(key, str):
            raise TypeError(f"it has the key {key!r}, and keys are texts")
        if key in _NAMED_SCHEMAS and isinstance(value, Mapping):
            result[key] = {name: changed(part) for name, part in value.items()}
        elif key in _LISTED_SCHEMAS and isinstance(value, (list, tuple)):
            result[key] = [changed(part) for part in value]
        elif key in _COUNTS and isinstance(value, float) and value.is_integer():
            result[key] = int(value)
        else:  # under any other name may stand what a "$ref" names, such as the "components" of OpenAPI
            result[key] = value if key in _VALUES or key.startswith("x-") else changed(value)
    return result


def _close_format(schema: dict[str, Any]) -> None:
    pattern = _FORMATS.get(schema["format"]) if isinstance(schema.get("format"), str) else None
    if pattern is not None:
        schema["allOf"] = [*schema.get("allOf", ()), {"pattern": pattern}]


def _refuse_count(schema: dict[str, Any]) -> None:
    """Refuse a count of properties that could be reached by writing one of them twice."""
    if _counts_too_far(schema):
        least, required = schema["minProperties"], schema.get("required", ())
        raise ConfigError(
            f"The JSON schema cannot be enforced: minProperties is {least}, with {len(required)} properties required; "
            f"at most one more than those can be counted. Name the properties under 'required'."
        )


def _refuse_optional(schema: dict[str, Any]) -> None:
    """Refuse so many properties that may be left out that llguidance takes long for them."""
    named, required = schema.get("properties"), schema.get("required", ())
    if isinstance(named, Mapping) and isinstance(required, (list, tuple)) and len(named) > _MOST_OPTIONAL:
        optional = len(named.keys() - {name for name in required if isinstance(name, str)})
        if optional > _MOST_OPTIONAL:
            raise ConfigError(
                f"The JSON schema cannot be enforced: an object has {optional} properties that may be left out; up to "
                f"{_MOST_OPTIONAL} can be followed. Name them under 'required', or have fewer."
            )


def _refuse_enum(schema: dict[str, Any]) -> None:
    """Refuse so many objects and lists at one place that an answer would end where it comes to them."""
    values = schema.get("enum")
    if isinstance(values, (list, tuple)):
        compound = sum(isinstance(value, (Mapping, list, tuple)) for value in values)
        if compound > _MOST_COMPOUND:
            raise ConfigError(
                f"The JSON schema cannot be enforced: an enum has {compound} objects and lists; up to {_MOST_COMPOUND} "
                "can be followed. Ask for a text or a number that names one of them, or have fewer."
            )


def _refuse_multiples(schema: Mapping[str, Any]) -> None:
    """Refuse multiples that llguidance takes long for: for each of them it makes as many states as their least common
    multiple is large, without its factors of two and five, which decimals have anyway.
    """
    multiples, common = [*_multiples_in(schema)], 1
    for multiple in multiples:
        common = math.lcm(common, _odd_part(multiple))
        if common * len(multiples) > _MOST_MULTIPLES:  # each time, so that no schema makes a number without end
            raise ConfigError(
                f"The JSON schema cannot be enforced: its multipleOf, {max(multiples):.15g} the largest of "
                f"{len(multiples)}, would take long to follow. Take smaller or rounder numbers, or leave them out."
            )


def _multiples_in(value: Any) -> Iterator[Decimal]:
    if isinstance(value, Mapping):
        multiple = value.get("multipleOf")
        if isinstance(multiple, (int, float)) and 0 < multiple < math.inf:
            yield Decimal(multiple if isinstance(multiple, int) else repr(float(multiple)))
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _multiples_in(part)


def _odd_part(multiple: Decimal) -> int:
    """Return what is left of a number's digits without its factors of two and five; of very many, too much."""
    digits = "".join(map(str, multiple.as_tuple().digits)).rstrip("0")
    whole = int(digits[:_MOST_DIGITS])
    if len(digits) > _MOST_DIGITS:
        return whole
    for factor in (2, 5):
        while whole % factor == 0:
            whole //= factor
    return whole


def _counts_too_far(schema: Mapping[str, Any]) -> bool:
    least, required = schema.get("minProperties", 0), schema.get("required", ())
    return isinstance(least, int) and isinstance(required, (list, tuple)) and least > len(required) + 1

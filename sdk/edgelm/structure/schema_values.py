"""Schema values: the numbers in a JSON schema that llguidance, whose numbers are floats of 64 bits, takes for others,
and the texts that it would write as others.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, TypeGuard

from edgelm.errors import ConfigError

_DOWN = {"minimum": False, "exclusiveMinimum": False, "maximum": True, "exclusiveMaximum": True}  # is inwards down?
_EVERY_INTEGER = 1 << 53  # up to here a float has every whole number
_LAST_INTEGER = math.nextafter(2.0**63, 0)  # the largest float among llguidance's integers, of 64 bits
_LONE_INTEGERS = 10**18  # from a lone bound llguidance counts to the next power of ten, which must have 64 bits too
_MOST = 1e308  # beyond it may be no float
_LAST_NUMBER = 999_999_999_999_999e3  # of those with 15 digits, the largest that llguidance takes for a lone bound
# Control characters that JSON_STYLE has no escape for: llguidance leaves them out of a text.
_UNWRITTEN = re.compile("[\0-\x07\x0b\x0e-\x1f\x7f]")
_SMALLEST_POWER = -22  # of ten: it divides by what is a float no more above 10 ** 22


def close_bounds(schema: dict[str, Any]) -> None:
    """Round bounds inwards that llguidance would round anyhow, or cannot count to; bound integers on both sides where
    it does not count on from one; exclude the 0 that it sees in (0, 0.5].

    Raises:
        ConfigError: all numbers that a bound leaves are beyond those of llguidance.
    """
    has_integers_alone = _has_integers_alone(schema)
    for keyword, bound in _bounds_beyond(schema):
        last = "integers are followed up to 64 bits" if has_integers_alone else "numbers are followed up to 18 digits"
        raise ConfigError(
            f"The JSON schema cannot be enforced: {keyword} is {reprlib.repr(bound)}, and {last}. Ask for a string of "
            "digits, or leave it out."
        )
    if has_integers_alone:
        for keyword, bound in _large_bounds(schema):
            schema[keyword] = int(_inwards(keyword, bound))
            end, sign = ("minimum", -1) if _DOWN[keyword] else ("maximum", 1)
            if sign * schema[keyword] >= _LONE_INTEGERS:
                schema.setdefault(end, sign * int(_LAST_INTEGER))
        return
    for keyword, down in _DOWN.items():
        limit = schema.get(keyword)
        if not _is_number(limit) or (isinstance(limit, int) and abs(limit) < 1e9) or not abs(limit) < math.inf:
            continue
        followed = max(-_LAST_NUMBER, min(limit, _LAST_NUMBER))
        rounding = ROUND_FLOOR if down else ROUND_CEILING
        exact = Decimal(followed if isinstance(followed, int) else repr(float(followed)))
        if abs(followed) < 1e9:
            inner = Context(prec=14, rounding=rounding).plus(exact).quantize(Decimal("1e-12"), rounding)
        else:
            inner = Context(prec=15, rounding=rounding).plus(exact)
        if inner != exact or followed != limit:
            schema[keyword] = float(inner)
    least, most = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if _is_whole(least) and least >= 0:
        del schema["exclusiveMinimum"]
        schema["minimum"] = max(least + 1e-12 * max(1, least), schema.get("minimum", least))
    if _is_whole(most) and most <= 0:
        del schema["exclusiveMaximum"]
        schema["maximum"] = min(most - 1e-12 * max(1, -most), schema.get("maximum", most))


def refuse_values(schema: dict[str, Any]) -> None:
    """Refuse a `const` or `enum` with a number or a text in it that would be written as another one.

    Raises:
        ConfigError: there is one.
    """
    for keyword in ("const", "enum"):
        if values := _unheld(schema.get(keyword)):
            problem = "more digits than are followed. Take a string in its place."
            if isinstance(values[0], str):
                problem = "a control character that is not written. Take another in its place."
            raise ConfigError(
                f"The JSON schema cannot be enforced: {keyword} has {reprlib.repr(values[0])}, which has {problem}"
            )


def drop_values(schema: dict[str, Any]) -> None:
    """Leave out what `close_bounds` and `refuse_values` refuse."""
    for keyword in ("const", "enum"):
        if _unheld(schema.get(keyword)):
            del schema[keyword]
    for keyword, _ in _bounds_beyond(schema):
        del schema[keyword]


def _has_integers_alone(schema: Mapping[str, Any]) -> bool:
    types = schema.get("type")
    return types == "integer" or (isinstance(types, (list, tuple)) and "integer" in types and "number" not in types)


def _large_bounds(schema: Mapping[str, Any]) -> list[tuple[str, float]]:
    """List the bounds that llguidance may round; below, it counts by itself."""
    bounds = [(keyword, schema.get(keyword)) for keyword in _DOWN]
    return [
        (keyword, bound) for keyword, bound in bounds if _is_number(bound) and _EVERY_INTEGER <= abs(bound) < math.inf
    ]


def _bounds_beyond(schema: Mapping[str, Any]) -> list[tuple[str, float]]:
    """List the bounds that leave no number which llguidance counts to."""
    inwards, last = (_inwards, _LAST_INTEGER) if _has_integers_alone(schema) else (lambda _, bound: bound, _LAST_NUMBER)
    return [
        (keyword, bound)
        for keyword, bound in _large_bounds(schema)
        if inwards(keyword, bound) * (-1 if _DOWN[keyword] else 1) > last
    ]


def _inwards(keyword: str, bound: float) -> float:
    """Return the first float that a bound of integers allows, and llguidance reads."""
    inner, down = float(max(-_MOST, min(bound, _MOST))), _DOWN[keyword]
    if keyword.startswith("exclusive") or (inner > bound if down else inner < bound):
        inner = math.nextafter(inner, -math.inf if down else math.inf)
    return min(inner, _LAST_INTEGER) if down else max(inner, -_LAST_INTEGER)


def _unheld(value: Any) -> list[float | str]:
    """List the numbers and texts in a value that llguidance reads as others, or may."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [found for part in value for found in _unheld(part)]
    if isinstance(value, str):
        return [value] if _UNWRITTEN.search(value) else []
    return [value] if _is_number(value) and not _is_held(value) else []


def _is_held(number: float) -> bool:
    if isinstance(number, float):
        if not math.isfinite(number):  # which is no JSON, and is refused as such
            return True
        _, digits, exponent = Decimal(repr(float(number))).as_tuple()  # as JSON has it: 5.0 has two digits
        if int("".join(map(str, digits))) > _EVERY_INTEGER or int(exponent) < _SMALLEST_POWER:
            return False
    return number != int(number) or (abs(number) <= _LAST_INTEGER and int(float(number)) == number)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(bound: Any) -> TypeGuard[float]:
    return _is_number(bound) and bound % 1 == 0 and abs(bound) < 1e9

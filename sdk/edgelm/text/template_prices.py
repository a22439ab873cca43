"""What it costs a chat template to make texts, lists and numbers that are far larger than what they are made of."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Any

from edgelm.text.template_budget import BudgetExceededError, pay, remaining, spend, values_in, weigh

_MOST_BITS = 4096  # of a whole number that is computed
# Behind the name of a value, which may have parentheses of its own: Python counts them, and no conversation needs them.
_WIDE = re.compile(r"%(?:\([^()]*\))?[^a-zA-Z%]*(?:\*|\d{4,})|%\([^()]*\(")
_WIDE_FIELD = re.compile(r"\d{4,}|\{")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines


def _pay_replacing(text: object, old: object, new: object) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        spend((text.count(old) * len(new)) >> 6)


def _pay_joining(items: Any, separator: object) -> None:
    if isinstance(separator, str) and hasattr(items, "__len__"):
        spend((len(items) * len(separator)) >> 6)
    pay(items)


def _pay_searching(text: str, characters: object) -> None:
    """Pay where each character of a text may be compared with each of another text, or of a set."""
    if isinstance(characters, str):
        spend((len(text) * len(characters)) >> 13)


def _is_wide(format_: str, sign: str) -> bool:
    if sign == "%":
        return _WIDE.search(format_) is not None
    return any(spec and _WIDE_FIELD.search(spec) for _, _, spec, _ in string.Formatter().parse(format_))


def _pay_formatting(format_: str, sign: str, values: object) -> None:
    """Pay as if each sign in the format wrote all of the values, at up to 999 characters of width."""
    if _is_wide(format_, sign):
        raise BudgetExceededError(f"it formats with a width of four digits or more: {format_[:40]!r}")
    spend((len(format_) >> 6) + format_.count(sign) * (16 + weigh(values, remaining())))


def _pay_join(value: Any, d: object = "", attribute: object = None) -> None:
    _pay_joining(value, str(pay(d)))


def _pay_replace(s: Any, old: Any, new: Any, count: int | None = None) -> None:
    _pay_replacing(*(str(pay(value)) for value in (s, old, new)))


def _pay_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> None:
    size = len(width) if isinstance(width, str) else int(width)
    lines = 2 + sum(map(str(pay(s)).count, _LINE_ENDS))
    spend((lines * max(size, 0)) >> 6)


def _pay_trim(value: Any, chars: object = None) -> None:
    _pay_searching(str(pay(value)), pay(chars))


def _pay_format(value: Any, *args: Any, **kwargs: Any) -> None:
    _pay_formatting(str(pay(value)), "%", [*args, kwargs])


def _pay_sum(iterable: Any, attribute: object = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise BudgetExceededError("it adds up other things than numbers")
    pay(iterable)


def _pay_striptags(value: Any) -> None:
    text = str(pay(value))
    spend((text.count("<") * len(text)) >> 13)  # each tag copies the rest


def _pay_tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> None:
    if not (indent is None or (isinstance(indent, int) and 0 <= indent <= 16)):
        raise BudgetExceededError(f"it indents JSON by {indent!r}; 0 to 16 are allowed")
    if separators is not None and not all(isinstance(part, str) and len(part) <= 16 for part in separators):
        raise BudgetExceededError("its JSON has separators of more than 16 characters")
    pay(value)
    if indent:
        spend(_indentation(value, indent) >> 6)


def _indentation(value: object, indent: int) -> int:
    """Count the spaces of indented JSON. The value's weight was paid, so it is no larger than the budget."""
    spaces, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        spaces += depth * indent
        stack += [(part, depth + 1) for part in values_in(item)]
    return spaces


# One row each for the filters that can leap: what is paid, or refused, before they run.
FILTER_PRICES: Mapping[str, Callable[..., None]] = {
    "join": _pay_join,
    "replace": _pay_replace,
    "indent": _pay_indent,
    "trim": _pay_trim,
    "format": _pay_format,
    "sum": _pay_sum,
    "striptags": _pay_striptags,
    "tojson": _pay_tojson,
}


def pay_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Pay for a call of a text's method, before it runs."""
    spend(len(text) >> 6)
    if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        spend(max(args[0], 0))
    elif name == "replace" and len(args) >= 2:
        _pay_replacing(text, args[0], args[1])
    elif name == "join" and args:
        _pay_joining(args[0], text)
    elif name in ("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition") and args:
        _pay_searching(text, args[0])  # from the end, Python's search has no bound but this
    elif name == "format":
        _pay_formatting(text, "{", [*args, kwargs])


def pay_operator(operator: str, left: Any, right: Any) -> None:
    """Pay for what an operator makes, before it is computed.

    Raises:
        BudgetExceededError: it would be a number of too many digits, or takes more than is left.
    """
    spend(1)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if bits > _MOST_BITS or (operator == "**" and left.bit_length() * right > _MOST_BITS):
            raise BudgetExceededError(f"it computes a number of more than {_MOST_BITS} bits")
    elif operator == "*":
        for part, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(part, (str, list, tuple)):
                spend((len(part) * max(times, 0)) >> (6 if isinstance(part, str) else 0))
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        spend((len(left) + len(right)) >> (6 if isinstance(left, str) else 0))
    elif operator == "%" and isinstance(left, str):
        _pay_formatting(left, "%", right)

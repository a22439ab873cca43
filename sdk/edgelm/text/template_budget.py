"""The budget of a chat template: a program from outside that may neither loop for ever nor fill the memory.

jinja2's sandbox keeps a template away from Python, but not from `'x' * 10**9`, from doubling a text forty times, or
from a macro that calls itself twice. Here each attribute, call, filter and text costs units of a budget that grows with
the conversation, and each iteration the more, the more of its body is run (`template_sandbox`). What can leap
(products, powers, padding, replacing) is paid before it is computed (`template_prices`). So a template ends after a
number of steps, which is the same on every machine, and not after a time.

A unit is one element of a list, or 64 characters: read, made or written; or four steps, which leave nothing behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

# A conversation of 1,000 short messages takes about 30,000 units in most templates of today's models. Gemma 4's, and
# GPT-OSS's where tools are called, go through the others for each of them: 400,000 to 600,000.
_UNITS = 100_000
_UNITS_OF_ELEMENT = 100
_CHARACTERS_OF_UNIT = 2  # what one character of the conversation adds: enough to read and write it 32 times
STEPS_OF_UNIT = 4


class BudgetExceededError(Exception):
    """The template did more than its budget allows."""


class _Budget:
    def __init__(self, units: int) -> None:
        self.steps_left = units * STEPS_OF_UNIT


_budget: ContextVar[_Budget] = ContextVar("budget of the template that runs")


@contextlib.contextmanager
def budget_for(values: Mapping[str, object]) -> Iterator[None]:
    """Run a template in the block, on a budget for a conversation of this size."""
    elements, characters = size_of(values)
    units = _UNITS + _UNITS_OF_ELEMENT * elements + characters // _CHARACTERS_OF_UNIT
    token = _budget.set(_Budget(units))
    try:
        yield
    finally:
        _budget.reset(token)


def size_of(value: object) -> tuple[int, int]:
    """Count the elements and the characters of a value of plain data."""
    if isinstance(value, str):
        return 1, len(value)
    sizes = [size_of(item) for item in values_in(value)]
    return 1 + sum(size[0] for size in sizes), sum(size[1] for size in sizes)


def values_in(value: object) -> Iterable[object]:
    """Return what a mapping or a list of plain data holds; any other value holds none."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else ()


def remaining() -> int:
    """Return how many units are left to the template that runs."""
    return _budget.get().steps_left // STEPS_OF_UNIT


def spend(units: int) -> None:
    """Take units from the budget of the template that runs.

    Raises:
        BudgetExceededError: it has fewer left.
    """
    step(units * STEPS_OF_UNIT)


def step(steps: int) -> None:
    """Take steps from the budget of the template that runs: each of some expressions, of which nothing stays.

    Raises:
        BudgetExceededError: it has fewer left.
    """
    budget = _budget.get()
    budget.steps_left -= steps
    if budget.steps_left < 0:
        raise BudgetExceededError(
            "it takes more steps, or makes longer texts, than any conversation of this size needs; where it goes "
            "through all messages for each of them, fewer help"
        )


def weigh(value: object, most: int) -> int:
    """Count the units of a value with all that is in it, as often as it is in it, up to `most`."""
    units, stack = 0, [value]
    while stack and units <= most:
        item = stack.pop()
        units += 1
        if isinstance(item, str):
            units += len(item) >> 6
        elif isinstance(item, int):
            units += item.bit_length() >> 6  # at the most, it is written in as many digits
        elif isinstance(item, range):
            units += len(item)
        elif isinstance(item, Namespace):
            stack.append(object.__getattribute__(item, "_Namespace__attrs"))
        elif isinstance(item, Mapping):
            units += len(item)
            if units <= most:
                stack += item.keys()
                stack += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)) or type(item).__name__.startswith("dict_"):
            units += len(item)  # type: ignore[arg-type]
            if units <= most:
                stack += item  # type: ignore[arg-type]
    return units


def pay(value: Any) -> Any:
    """Pay for a value that is read to its depths: written, compared, made a text of."""
    spend(weigh(value, remaining()))
    return value


def pay_result(value: Any) -> Any:
    """Pay for a value that was made: a text by its length, a list by its elements, a generator as it goes."""
    if isinstance(value, str):
        spend(1 + (len(value) >> 6))
    elif isinstance(value, (list, tuple, dict, set)):
        spend(1 + len(value))
    elif isinstance(value, Iterator):
        return _paid_items(value)
    return value


def _paid_items(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        spend(1 + (len(item) >> 6 if isinstance(item, str) else 0))
        yield item

"""The budget of a chat template: a program from outside that may neither loop for ever nor fill the memory.

jinja2's sandbox keeps a template away from Python, but not from `'x' * 10**9`, from doubling a text forty times, or
from a macro that calls itself twice. Here each iteration, call, filter and text costs units of a budget that grows with
the conversation, and what can leap (products, powers, padding, replacing) is paid before it is computed. So a template
ends after a number of steps, which is the same on every machine, and not after a time.

A unit is one step, one element of a list, or 64 characters: read, made or written.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn, cast

import jinja2
import jinja2.nodes as nodes
import jinja2.sandbox
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

# A conversation of 1,000 short messages takes about 30,000 units in the templates of today's models.
_UNITS = 100_000
_UNITS_OF_ELEMENT = 100
_CHARACTERS_OF_UNIT = 2  # what one character of the conversation adds: enough to read and write it 32 times
_MOST_BITS = 4096  # of a whole number that is computed

# The names of these filters are no words of the language: only the compiler can write them.
_STEP, _PAY, _PASS, _SLICE = "edgelm step", "edgelm pay", "edgelm pass", "edgelm slice"

_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{4,})|\{[^{}]*:[^{}]*(?:\d{4,}|\{)")

_TEXT_METHODS = """
capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit islower isnumeric
isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust
rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
"""
# What a template may call on plain values; jinja2's own objects (loop, namespace, macros) are the sandbox's business.
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}
# Filters that are left out: they guess at random, or format text in ways that no conversation needs and that leap.
_LEFT_OUT = ("batch", "pprint", "random", "slice", "urlize", "wordwrap", "xmlattr")
# Filters whose cost does not depend on what is inside of their value.
_SHALLOW = ("attr", "count", "d", "default", "first", "items", "last", "length", "safe")
_DEEP_TESTS = "in eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >= lower upper".split()  # noqa: SIM905


class BudgetExceededError(Exception):
    """The template did more than its budget allows."""


class _Budget:
    def __init__(self, units: int) -> None:
        self.left = units


_budget: ContextVar[_Budget] = ContextVar("budget of the template that runs")


@contextlib.contextmanager
def budget_for(values: Mapping[str, object]) -> Iterator[None]:
    """Run a template in the block, on a budget for a conversation of this size."""
    elements, characters = _size(values)
    units = _UNITS + _UNITS_OF_ELEMENT * elements + characters // _CHARACTERS_OF_UNIT
    token = _budget.set(_Budget(units))
    try:
        yield
    finally:
        _budget.reset(token)


def _size(value: object) -> tuple[int, int]:
    """Count the elements and the characters of a value of plain data."""
    if isinstance(value, str):
        return 1, len(value)
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    sizes = [_size(item) for item in inner]
    return 1 + sum(size[0] for size in sizes), sum(size[1] for size in sizes)


def _spend(units: int) -> None:
    budget = _budget.get()
    budget.left -= units
    if budget.left < 0:
        _exceed()


def _exceed() -> NoReturn:
    raise BudgetExceededError("it takes more steps, or makes longer texts, than any conversation of this size needs")


def _weigh(value: object, most: int) -> int:
    """Count the units of a value with all that is in it, as often as it is in it, up to `most`."""
    units, stack = 0, [value]
    while stack and units <= most:
        item = stack.pop()
        units += 1
        if isinstance(item, str):
            units += len(item) >> 6
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


def _pay(value: Any) -> Any:
    """Pay for a value that is read to its depths: written, compared, made a text of."""
    _spend(_weigh(value, _budget.get().left))
    return value


def _pay_result(value: Any) -> Any:
    """Pay for a value that was made: a text by its length, a list by its elements, a generator as it goes."""
    if isinstance(value, str):
        _spend(1 + (len(value) >> 6))
    elif isinstance(value, (list, tuple, dict, set)):
        _spend(1 + len(value))
    elif isinstance(value, Iterator):
        return _paid_items(value)
    return value


def _paid_items(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1 + (len(item) >> 6 if isinstance(item, str) else 0))
        yield item


def _pay_replacing(text: object, old: object, new: object) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        _spend((text.count(old) * len(new)) >> 6)


def _pay_joining(items: Any, separator: object) -> None:
    if isinstance(separator, str) and hasattr(items, "__len__"):
        _spend((len(items) * len(separator)) >> 6)
    _pay(items)


def _pay_formatting(format_: object, sign: str, values: object) -> None:
    """Pay as if each sign in the format wrote all of the values, at up to 999 characters of width."""
    if not isinstance(format_, str):
        return
    if _WIDE.search(format_):
        raise BudgetExceededError(f"it formats with a width of four digits or more: {format_[:40]!r}")
    _spend((len(format_) >> 6) + format_.count(sign) * (16 + _weigh(values, _budget.get().left)))


# One row each for the filters that can leap: what is paid, or refused, before they run.


def _pay_join(value: Any, d: object = "", attribute: object = None) -> None:
    _pay_joining(value, d)


def _pay_replace(s: Any, old: str, new: str, count: int | None = None) -> None:
    _pay_replacing(_pay(s), old, new)


def _pay_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> None:
    size = len(width) if isinstance(width, str) else int(width)
    _spend(((str(_pay(s)).count("\n") + 2) * max(size, 0)) >> 6)


def _pay_format(value: Any, *args: Any, **kwargs: Any) -> None:
    _pay_formatting(value, "%", [*args, kwargs])


def _pay_sum(iterable: Any, attribute: object = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise BudgetExceededError("it adds up other things than numbers")
    _pay(iterable)


def _pay_striptags(value: Any) -> None:
    text = str(_pay(value))
    _spend((text.count("<") * len(text)) >> 13)  # each tag copies the rest


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
    _pay(value)
    if indent:
        _spend(_indentation(value, indent) >> 6)


def _indentation(value: object, indent: int) -> int:
    """Count the spaces of indented JSON. The value's weight was paid, so it is no larger than the budget."""
    spaces, stack = 0, [(value, 1)]
    while stack:
        item, depth = stack.pop()
        spaces += depth * indent
        inner = item.values() if isinstance(item, Mapping) else item if isinstance(item, (list, tuple)) else ()
        stack += [(part, depth + 1) for part in inner]
    return spaces


_BEFORE: Mapping[str, Callable[..., None]] = {
    "join": _pay_join,
    "replace": _pay_replace,
    "indent": _pay_indent,
    "format": _pay_format,
    "sum": _pay_sum,
    "striptags": _pay_striptags,
    "tojson": _pay_tojson,
}


class BudgetedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox, in which everything that a template does is paid for.

    Templates run inside of `budget_for`. `meter` finishes an environment after filters were added to it.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        # The optimizer would compute constant expressions while it compiles, unpaid.
        super().__init__(optimized=False, finalize=_finalize, **options)

    def meter(self) -> None:
        """Take away what leaps without need, and put a price on the rest."""
        for name in _LEFT_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        for name, filter_ in self.filters.items():
            self.filters[name] = _metered_filter(name, filter_)
        for name in _DEEP_TESTS:
            self.tests[name] = _metered_test(cast("Callable[..., Any]", self.tests[name]))
        self.filters |= {_STEP: _spend, _PAY: _pay, _PASS: _pass, _SLICE: _pay_result}

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        return super()._generate(_Meter().visit(source), *args, **options)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the methods of plain values that conversations need."""
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return type(obj).__module__ != "builtins" and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up an element; hashing a tuple reads it to its depths."""
        return super().getitem(obj, _pay(argument) if isinstance(argument, tuple) else argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for the result before it is computed."""
        _pay_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Pay for the call, what it reads, and what it makes."""
        _spend(1)
        if not isinstance(obj, (Macro, LoopContext, type)):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            _pay([*args, *kwargs.values()])
            method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
            if isinstance(getattr(method, "__self__", None), str):
                _pay_method(method.__self__, method.__name__, args, kwargs)
        return _pay_result(super().call(context, obj, *args, **kwargs))


def _pay_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    _spend(len(text) >> 6)
    if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        _spend(max(args[0], 0))
    elif name == "replace" and len(args) >= 2:
        _pay_replacing(text, args[0], args[1])
    elif name == "join" and args:
        _pay_joining(args[0], text)
    elif name in ("format", "format_map"):
        _pay_formatting(text, "{", [*args, kwargs])


def _pay_operator(operator: str, left: Any, right: Any) -> None:
    _spend(1)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if (operator == "*" and bits > _MOST_BITS) or (operator == "**" and left.bit_length() * right > _MOST_BITS):
            raise BudgetExceededError(f"it computes a number of more than {_MOST_BITS} bits")
    elif operator == "*":
        for part, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(part, (str, list, tuple)):
                _spend((len(part) * max(times, 0)) >> (6 if isinstance(part, str) else 0))
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _spend((len(left) + len(right)) >> (6 if isinstance(left, str) else 0))
    elif operator == "%" and isinstance(left, str):
        _pay_formatting(left, "%", right)


@jinja2.pass_context  # so that the compiler cannot compute it
def _finalize(_context: Context, value: Any) -> Any:
    return _pay(value)


def _pass(value: Any) -> Any:
    """Pay for one step of a loop's condition."""
    _spend(1)
    return value


def _metered_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    shift = 1 if getattr(filter_, "jinja_pass_arg", None) is not None else 0  # jinja2 passes its own object first
    before = _BEFORE.get(name)

    @functools.wraps(filter_)
    def metered(*args: Any, **kwargs: Any) -> Any:
        _spend(1)
        own, given = args[:shift], args[shift:]
        if before is not None:
            given = tuple(list(value) if isinstance(value, Iterator) else value for value in given)
            before(*given, **kwargs)
        elif name not in _SHALLOW:
            for value in (*given, *kwargs.values()):
                _spend(abs(value)) if isinstance(value, int) else _pay(value)  # a width, a number of places
        result = filter_(*own, *given, **kwargs)
        return result if name in _SHALLOW else _pay_result(result)

    return metered


def _metered_test(test: Callable[..., Any]) -> Callable[..., Any]:
    def metered(*args: Any) -> Any:
        return test(*(_pay(arg) for arg in args))

    return metered


class _Meter(NodeTransformer):
    """Put the price of each step into a parsed template."""

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, _step(1, node.lineno))
        return node

    visit_Macro = visit_CallBlock = _body  # jinja2 finds them by these names

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.test is not None:
            node.test = _through(_PASS, node.test)
        result: nodes.Node = self._body(node)
        return result

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        characters = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [_step(characters >> 6, node.lineno), node] if characters >> 6 else [node]

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_SLICE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_through(_PAY, part) for part in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        searches = any(operand.op in ("in", "notin") for operand in node.ops)
        # Beside a constant, a comparison ends within its length.
        if searches or not any(_is_small(operand) for operand in operands):
            node.expr = _through(_PAY, node.expr)
            for operand in node.ops:
                operand.expr = _through(_PAY, operand.expr)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for item in node.items:
            item.key = item.key if isinstance(item.key, nodes.Const) else _through(_PAY, item.key)
        return node


def _step(units: int, line: int) -> nodes.Node:
    return nodes.ExprStmt(_through(_STEP, nodes.Const(units, lineno=line)), lineno=line)


def _through(filter_: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, filter_, [], [], None, None, lineno=node.lineno)


def _is_small(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) or (isinstance(node, (nodes.List, nodes.Tuple)) and not node.items)

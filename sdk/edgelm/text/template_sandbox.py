"""The sandbox of chat templates: jinja2's immutable one, in which every step has a price."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jinja2
import jinja2.idtracking
import jinja2.nodes as nodes
import jinja2.sandbox
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, LoopContext, Macro, markup_join, str_join
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer

from edgelm.errors import ChatTemplateError
from edgelm.text.template_budget import STEPS_OF_UNIT, pay, pay_result, spend, step
from edgelm.text.template_prices import FILTER_PRICES, pay_method, pay_operator

# The names of these filters are no words of the language: only the compiler can write them.
_STEP, _PAY, _PASS, _SLICE, _JOIN = "edgelm step", "edgelm pay", "edgelm pass", "edgelm slice", "edgelm join"
_SEARCH = "edgelm search"

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
# Nodes of a template's tree, which are what compiling it takes time for: in templates in use, 0.6 for a word or mark.
MAX_NODES = 5 << 9
_NODES_OF_STEP = 8  # of what has no price of its own, such as names and conditions
_STEP_NODES = 3  # so many make a step
# As so many nodes counts what takes memory that a template can keep: 60 bytes, and 170 more of a dictionary with a key.
_WEIGHTS: Mapping[type[nodes.Node], int] = {nodes.List: 4, nodes.Tuple: 4, nodes.Dict: 4, nodes.Pair: 12}
_BODIES, _BODY = (nodes.For, nodes.Macro, nodes.CallBlock), 7  # each of these takes as much time as seven others
# Filters whose cost does not depend on what is inside of their value.
_SHALLOW = ("attr", "count", "d", "default", "first", "items", "last", "length", "safe")
_DEEP_TESTS = "in eq equalto == ne != lt lessthan < le <= gt greaterthan > ge >= lower upper".split()  # noqa: SIM905


class _CodeGenerator(CodeGenerator):
    """The compiler, which keeps the names that a template reads and gives no value, as `jinja2.meta` finds them."""

    def enter_frame(self, frame: Frame) -> None:
        super().enter_frame(frame)
        for action, name in frame.symbols.loads.values():
            if action == jinja2.idtracking.VAR_LOAD_RESOLVE and name not in self.environment.globals:
                cast("BudgetedEnvironment", self.environment).names_read.add(cast("str", name))

    def write_commons(self) -> None:
        super().write_commons()
        self.writeline("look_up = environment.look_up")

    def visit_Name(self, node: nodes.Name, frame: Frame) -> None:  # noqa: N802
        """Write a call where jinja2 writes a condition, which takes Python twice the time to compile."""
        variable = frame.symbols.ref(node.name)
        load = frame.symbols.find_load(variable)
        given = load is not None and load[0] == jinja2.idtracking.VAR_LOAD_PARAMETER
        if node.ctx != "load" or (given and not self.parameter_is_undeclared(variable)):
            super().visit_Name(node, frame)
        else:
            self.write(f"look_up({variable}, {node.name!r})")


class BudgetedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox, in which everything that a template does is paid for.

    Templates run inside of `budget_for`. `meter` finishes an environment after filters were added to it. `names_read`
    are those of the variables that its templates read from outside.
    """

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        # The optimizer would compute constant expressions while it compiles, unpaid.
        super().__init__(optimized=False, finalize=_finalize, **options)
        self.names_read: set[str] = set()

    def meter(self) -> None:
        """Take away what leaps without need, and put a price on the rest."""
        for name in _LEFT_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        for name, filter_ in self.filters.items():
            self.filters[name] = _metered_filter(name, filter_)
        for name in _DEEP_TESTS:
            self.tests[name] = _metered_test(cast("Callable[..., Any]", self.tests[name]))
        self.tests |= {
            "divisibleby": lambda value, num: _remainder(value, num) == 0,
            "even": lambda value: _remainder(value, 2) == 0,
            "odd": lambda value: _remainder(value, 2) == 1,
        }
        self.filters |= {_STEP: step, _PAY: pay, _PASS: _pass, _SLICE: pay_result, _JOIN: _join, _SEARCH: _search}

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        meter = _Meter()
        metered = meter.visit(source)
        every = _nodes_of(metered)
        size = sum(_BODY if isinstance(node, _BODIES) else 1 for node in every) - _STEP_NODES * meter.branches
        if size > MAX_NODES:
            raise ChatTemplateError(f"The chat template has more than {MAX_NODES} expressions and statements.")
        # The compiler looks for three kinds of nodes, and goes through the tree for each.
        vars(metered)["find_all"] = lambda kind: (node for node in every if isinstance(node, kind))
        return super()._generate(metered, *args, **options)

    def look_up(self, value: Any, name: str) -> Any:
        """Return a variable's value; to make one of what has none takes as long as a step."""
        if value is not missing:
            return value
        spend(1)
        return self.undefined(name=name)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the methods of plain values that conversations need."""
        if isinstance(obj, (Namespace, LoopContext)):  # jinja2's own check says the same, and takes 3 us more
            return not attr.startswith("_")
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return type(obj).__module__ != "builtins" and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Let `format` alone by: jinja2 allows `format_map` too, and before it asks what is safe."""
        return None if getattr(value, "__name__", None) == "format_map" else super().wrap_str_format(value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look up an attribute, or an element of that name."""
        return _found(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up an element; hashing a tuple reads it to its depths."""
        return _found(super().getitem(obj, pay(argument) if isinstance(argument, tuple) else argument))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Pay for the result before it is computed."""
        pay_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Pay for the call, what it reads, and what it makes."""
        spend(1 + len(args) + len(kwargs))
        if not isinstance(obj, (Macro, LoopContext)):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            pay([*args, *(() if isinstance(obj, type) else kwargs.values())])  # dict() and namespace() hash the first
            method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
            owner = getattr(method, "__self__", None)
            if isinstance(owner, str):
                pay_method(owner, method.__name__, args, kwargs)
            elif isinstance(owner, (list, tuple)):
                pay(owner)
        return pay_result(super().call(context, obj, *args, **kwargs))


def _nodes_of(tree: nodes.Node) -> list[nodes.Node]:
    """Return a tree's nodes, each behind its parent: what `find_all` yields, in a third of the time."""
    found = [tree]
    for node in found:
        for field in node.fields:
            value = getattr(node, field)
            if isinstance(value, nodes.Node):
                found.append(value)
            elif isinstance(value, list):
                found += [item for item in value if isinstance(item, nodes.Node)]
    return found


@jinja2.pass_context  # so that the compiler cannot compute it
def _finalize(_context: Context, value: Any) -> Any:
    return pay(value)


@jinja2.pass_eval_context
def _join(context: nodes.EvalContext, parts: list[Any]) -> str:
    """Join texts as `~` does, all paid for at once: a call for each makes a template of many slow to compile."""
    for part in parts:
        pay(part)
    return markup_join(parts) if context.autoescape else str_join(parts)


def _found(value: Any) -> Any:
    """Pay for what was looked up: more for a method, or for what stands for nothing, which are made for this."""
    if callable(value):
        spend(3 if hasattr(value, "__wrapped__") else 1)  # a function of the sandbox's around `format`: 500 bytes
    else:
        step(1)
    return value


def _search(container: Any) -> Any:
    """Pay for going through what `in` searches; a key of a dictionary is found without that."""
    if isinstance(container, dict):
        step(1)
        return container
    return pay(container)


def _remainder(value: Any, number: Any) -> Any:
    pay_operator("%", value, number)  # of a text, this formats
    return value % number


def _pass(value: Any) -> Any:
    """Pay for one step of a loop's condition."""
    spend(1)
    return value


def _metered_filter(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    shift = 1 if getattr(filter_, "jinja_pass_arg", None) is not None else 0  # jinja2 passes its own object first
    before = FILTER_PRICES.get(name)

    @functools.wraps(filter_)
    def metered(*args: Any, **kwargs: Any) -> Any:
        spend(1)
        own, given = args[:shift], args[shift:]
        if before is not None:
            given = tuple(list(value) if isinstance(value, Iterator) else value for value in given)
            before(*given, **kwargs)
        elif name not in _SHALLOW:
            for value in given[:1]:
                pay(value)
            for value in (*given[1:], *kwargs.values()):
                if isinstance(value, int):
                    spend(abs(value))  # a width, a number of places
                else:
                    pay(value)
        result = filter_(*own, *given, **kwargs)
        return result if name in _SHALLOW else pay_result(result)

    return metered


def _metered_test(test: Callable[..., Any]) -> Callable[..., Any]:
    def metered(*args: Any) -> Any:
        return test(*(pay(arg) for arg in args))

    return metered


class _Meter(NodeTransformer):
    """Put the price of each step into a parsed template."""

    def __init__(self) -> None:
        self.branches = 0  # how many have a step of their own
        self._nodes = 0  # of the body that is gone through, without the bodies and branches inside of it

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self._nodes += _WEIGHTS.get(type(node), 1)
        return super().visit(node, *args, **kwargs)

    def _body(self, node: Any, once: int = 0) -> Any:
        """Put a price on each run of a body; `once` of the nodes belong to what is around it."""
        outer, self._nodes = self._nodes + once, -once
        self.generic_visit(node)
        node.body.insert(0, _step(max(1, self._nodes // _NODES_OF_STEP), node.lineno))
        self._nodes = outer + _BODY
        return node

    visit_Macro = visit_CallBlock = visit_Block = _body  # jinja2 finds them by these names

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.test is not None:
            node.test = _through(_PASS, node.test)
        result: nodes.Node = self._body(node, once=len(_nodes_of(node.iter)))
        return result

    def visit_If(self, node: nodes.If) -> nodes.Node:  # noqa: N802
        node.test = self.visit(node.test)
        node.body = self._branch(node.body)
        node.elif_ = [self.visit(branch) for branch in node.elif_]
        node.else_ = self._branch(node.else_)
        return node

    def _branch(self, statements: list[nodes.Node]) -> list[nodes.Node]:
        """Let whole steps of a branch be paid where it is taken, and what is left with the statement around it."""
        outer, self._nodes = self._nodes, 0
        metered = [node for statement in statements for node in self.visit_list(statement)]
        steps, left = divmod(self._nodes, _NODES_OF_STEP)
        self._nodes = outer + left
        if steps == 0:
            return metered
        self.branches += 1
        return [_step(steps, statements[0].lineno), *metered]

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        characters = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [_step((characters >> 6) * STEPS_OF_UNIT, node.lineno), node] if characters >> 6 else [node]

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_SLICE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through(_JOIN, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        searches = any(operand.op in ("in", "notin") for operand in node.ops)
        # Beside a constant, a comparison ends within its length.
        if searches or not all(_is_small(left) or _is_small(right) for left, right in itertools.pairwise(operands)):
            node.expr = _through(_PAY, node.expr)
            for operand in node.ops:
                operand.expr = _through(_SEARCH if operand.op in ("in", "notin") else _PAY, operand.expr)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for item in node.items:
            item.key = item.key if isinstance(item.key, nodes.Const) else _through(_PAY, item.key)
        return node


def _step(steps: int, line: int) -> nodes.Node:
    return nodes.ExprStmt(_through(_STEP, nodes.Const(steps, lineno=line)), lineno=line)


def _through(filter_: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, filter_, [], [], None, None, lineno=node.lineno)


def _is_small(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) or (isinstance(node, (nodes.List, nodes.Tuple)) and not node.items)

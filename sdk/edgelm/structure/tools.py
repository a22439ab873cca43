"""Tools: what a model may call, and what its calls must be."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgelm.arguments import as_list
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig
from edgelm.structure.constraint import JSON_STYLE, LENIENT, Constraint, lark_string
from edgelm.structure.marked_call import marked_call
from edgelm.structure.python_call import python_call
from edgelm.structure.python_call_reader import NAME
from edgelm.structure.schema_gaps import close_gaps
from edgelm.structure.schema_types import in_json_types
from edgelm.structure.tagged_call import tagged_call
from edgelm.structure.tool_formats import ToolFormat

Tool = Mapping[str, Any]  # in OpenAI's form: {"type": "function", "function": {"name", "description", "parameters"}}
ToolChoice = Literal["auto", "none", "required"] | Mapping[str, Any]  # {"name": ...}: that tool

_NO_PARAMETERS = {"type": "object", "properties": {}}


def listed_tools(tools: Sequence[Tool] | None) -> list[Tool]:
    """Return tools as a list; none of them for None.

    Raises:
        ConfigError: they are no list, or one of them is not in OpenAI's form.
    """
    listed = [] if tools is None else as_list(tools, "tools takes a list of definitions in OpenAI's form")
    _functions(listed)
    return listed


def tool_parameters(tools: Sequence[Tool]) -> dict[str, Mapping[str, Any]]:
    """Return the schemas of the parameters of some tools, by the tools' names.

    Raises:
        ConfigError: one of them is not in OpenAI's form.
    """
    return {function["name"]: _schema_of(function) for function in _functions(tools)}


def tool_constraint(
    tools: Sequence[Tool],
    tool_choice: ToolChoice,
    format: ToolFormat,
    *,
    parallel: bool = True,
    form: Constraint | None = None,
) -> Constraint | None:
    """Return what an answer must be, so that its calls are well formed and fit the tools' parameters.

    "auto" lets the model say what it likes until it begins a call; without llguidance it has no constraint at all.
    "required" and a named tool begin with the call. parallel: whether one answer may have several calls; where a tool
    is named, it has one. form: the JSON schema of an answer that calls nothing; it is that or calls, from its first
    token on. Keywords of a tool's schema that cannot be enforced are left to the model, unless the function says
    `"strict": true`.

    Raises:
        ConfigError: a tool is not in OpenAI's form, or its parameters are no object's; or the choice is none of those,
            or names no tool; or the form is no JSON schema, or one that cannot be enforced.
        MissingExtraError: there is a form, and llguidance is not installed.
    """
    if form is not None:
        _check_form(form)
    functions = _functions(tools)
    if tool_choice == "none" or not functions:
        if tool_choice in ("none", "auto"):
            return None
        raise ConfigError(f"tool_choice is {tool_choice!r}, but there are no tools.")
    if isinstance(tool_choice, Mapping):
        functions, parallel = [_named(functions, tool_choice)], False
    elif tool_choice not in ("auto", "required"):
        raise ConfigError(f"tool_choice is {tool_choice!r}; it is auto, none, required, or {{'name': ...}}.")
    parallel = parallel and format.is_parallel
    if tool_choice != "auto" or form is not None:
        opening = "" if format.bare_start else format.lark(format.lead + format.start)
        answer = form if tool_choice == "auto" else None
        return Constraint.lark(_grammar(functions, format, opening, parallel, answer=answer))
    if importlib.util.find_spec("llguidance") is None:
        return None
    if format.bare_start:
        grammar = _grammar(functions, format, "", parallel, begun=True)
        return Constraint.lark(grammar).starting_after(
            format.bare_start, format.start + format.bare_start, at_start=True
        )
    return Constraint.lark(_grammar(functions, format, "", parallel)).starting_after(format.start)


def tool_settings(
    config: GenerationConfig,
    tools: Sequence[Tool],
    tool_choice: ToolChoice,
    format: ToolFormat,
    *,
    parallel: bool = True,
) -> GenerationConfig:
    """Return the configuration of an answer that may call tools: its constraint, and its markers as text.

    A JSON schema that the config has already is the form of an answer that calls none.

    Raises:
        ConfigError, MissingExtraError: as from `tool_constraint`.
    """
    if not tools or tool_choice == "none":
        tool_constraint(tools, tool_choice, format)
        return config
    constraint = tool_constraint(tools, tool_choice, format, parallel=parallel, form=config.constraint)
    if constraint is not None:
        _check_fits(config)
    visible = () if format.lead else format.control_ids
    return config.replace(constraint=constraint, visible_control_tokens=(*config.visible_control_tokens, *visible))


def _check_fits(config: GenerationConfig) -> None:
    """Refuse what a config has that shuts out the constraint of tools, before it is called one of the user's."""
    for name in ("num_beams", "token_healing"):
        value, default = getattr(config, name), getattr(GenerationConfig, name)
        if value != default:
            raise ConfigError(
                f"{name} is {value!r}, and there are tools, to whose form calls are held token by token; they exclude "
                f"each other. Set {name} to {default!r}, or tool_choice to 'none'."
            )


def _functions(tools: Sequence[Tool]) -> list[Mapping[str, Any]]:
    functions = []
    for i, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
            or not function["name"]
            or not isinstance(function.get("parameters") or {}, Mapping)
        ):
            raise ConfigError(
                f"tools[{i}] is {tool!r}; a tool is {{'type': 'function', 'function': {{'name': ..., "
                "'description': ..., 'parameters': a JSON schema}}."
            )
        functions.append(function)
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two tools have the same name: {', '.join(sorted(names))}.")
    return functions


def _named(functions: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]) -> Mapping[str, Any]:
    wanted = choice.get("function", choice)
    name = wanted.get("name") if isinstance(wanted, Mapping) else None
    for function in functions:
        if function["name"] == name:
            return function
    known = ", ".join(function["name"] for function in functions)
    raise ConfigError(f"tool_choice names the tool {name!r}; there are: {known}.")


def _grammar(
    functions: Sequence[Mapping[str, Any]],
    format: ToolFormat,
    opening: str,
    parallel: bool,
    *,
    begun: bool = False,
    answer: Constraint | None = None,
) -> str:
    """Write the grammar of one call or several, after `opening`.

    begun: the call's object stands already up to the key of the name, which is `bare_start`. answer: what may stand in
    the place of all calls.
    """
    rules = ["start: calls" if answer is None else f"start: calls | answer\nanswer: %json {_in_one_style(answer)}"]
    for i, function in enumerate(functions):
        rules += _call(f"tool_{i}", function, format, begun=begun)
    tool = "tool: " + " | ".join(f"tool_{i}" for i in range(len(functions)))
    end = format.lark(format.end) if format.end else ""
    before, behind, separator = map(format.lark, (format.before, format.behind, format.separator))
    if format.is_list:
        more = f"({separator} tool)*" if parallel else ""
        left, right = (lark_string(text) if text else "" for text in format.brackets)
        calls = f"calls: {opening} {before} {left} tool {more} {right} {behind} {end}"
    else:
        more = f"({separator} {format.lark(format.start)} call)*" if parallel else ""
        calls = f"calls: {opening} call {more}\ncall: {before} tool {behind} {end}"
    return "\n".join((*rules, calls, tool))


def _call(rule: str, function: Mapping[str, Any], format: ToolFormat, *, begun: bool) -> list[str]:
    """Return the rules, `rule` the first, for calls of one tool."""
    name, parameters = function["name"], _parameters(function)
    if not format.is_json:
        if not NAME.fullmatch(name):
            form = "in tags" if format.tags else "call:name{…}"
            form = "name(parameter=value)" if format.is_python else form
            raise ConfigError(
                f"The tool's name {name!r} has characters that cannot stand in a call as this model writes it, {form}. "
                "Use letters, digits, '_', '-' and '.'."
            )
        if format.is_python:
            return python_call(rule, name, parameters)
        write = tagged_call if format.tags else marked_call
        try:
            return write(rule, name, parameters, format, strict=bool(function.get("strict")))
        except (AttributeError, TypeError, RecursionError) as error:
            raise _no_schema(function, error) from error
    arguments = f"%json {json.dumps(parameters, ensure_ascii=False)}"
    if format.name_end:
        asides = " ".join(f"({format.lark(aside)})?" for aside in format.asides)
        return [f"{rule}: {lark_string(name)} {asides} {format.lark(format.name_end)} {arguments}"]
    # Cut where JSON is: llguidance reads the longest piece that may stand here, and an answer's may be shorter.
    key = json.dumps(name, ensure_ascii=False)
    head = [*(() if begun else ("{", '"name"')), ": ", key, ", ", f'"{format.argument_key}"', ": "]
    return [f'{rule}: {" ".join(map(lark_string, head))} {arguments} "}}"']


def _check_form(form: Constraint) -> None:
    from edgelm.structure.constraint_matcher import check_form  # brings numpy with it

    if form.kind != "json_schema" or form.after:
        raise ConfigError(
            "Beside tools an answer can have a JSON schema for its constraint, with nothing before it, and no other; "
            "leave one out, or set tool_choice 'none'."
        )
    check_form(form)  # here its error speaks of this schema, later of a tool's


def _in_one_style(form: Constraint) -> str:
    schema = json.loads(form.source)
    style = schema.get("x-guidance")
    own = style if isinstance(style, Mapping) else {}  # what is none is passed over
    return json.dumps({**schema, "x-guidance": {**JSON_STYLE, **own}}, ensure_ascii=False)


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    given = _schema_of(function)
    kind = given.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ConfigError(
            f"The parameters of the tool {function['name']!r} are of type {kind!r}; arguments have names, so they are "
            "{'type': 'object', 'properties': ...}."
        )
    strict = bool(function.get("strict"))
    try:
        schema = close_gaps(given, strict=strict)
        schema["type"] = "object"
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)  # a small model makes up parameters where it may
        schema.setdefault("x-guidance", JSON_STYLE if strict else LENIENT)
        json.dumps(schema, allow_nan=False)
        return schema
    except (TypeError, ValueError, RecursionError) as error:
        raise _no_schema(function, error) from error


def _schema_of(function: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return in_json_types(function.get("parameters") or _NO_PARAMETERS)
    except (TypeError, RecursionError) as error:
        raise _no_schema(function, error) from error


def _no_schema(function: Mapping[str, Any], error: Exception) -> ConfigError:
    return ConfigError(f"The parameters of the tool {function['name']!r} are no JSON schema: {error}.")

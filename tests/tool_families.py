"""What each family's chat template and calls of tools look like, with two tools to call."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

from edgelm.completion import Chunk, Message
from edgelm.language_model import LanguageModel
from edgelm.structure.constraint import Constraint
from edgelm.structure.constraint_matcher import ConstraintMatcher
from edgelm.structure.tool_call_parser import ToolCallParser
from edgelm.structure.tool_formats import FORMATS, ToolFormat
from edgelm.structure.tools import tool_constraint
from edgelm.testing import tiny_model_path
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Tell it.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "stop"}},
]
SCHEMAS = {"get_weather": WEATHER, "stop": {"type": "object", "maxProperties": 0}}
QUESTION = [Message(role="user", content="How is the weather in Oslo?")]
OSLO = {"city": "Oslo", "unit": "celsius"}

# Small templates that write as those of each family do.
_TURNS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}CALL{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
)
_PYTHON = (
    "{% if m.tool_calls %}START{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for key, value in c.function.arguments.items() %}{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}"
    "{% endfor %}){{ BETWEEN if not loop.last }}{% endfor %}END{% endif %}"
)
_IN_PYTHON = _TURNS.replace("{% for c in m.tool_calls or [] %}CALL{% endfor %}", _PYTHON)
_IN_TAGS = _TURNS.replace(
    "CALL",
    "\nSTART{{ c.function.name }}BEHIND_NAME{% for key, value in c.function.arguments.items() %}"
    "BEFORE_KEY{{ key }}BEHIND_KEY{{ value if value is string else value | tojson }}BEHIND_VALUE{% endfor %}END",
)
_MARKED = _TURNS.replace(
    "CALL",
    "STARTcall:{{ c.function.name + '{' }}{% for key, value in c.function.arguments | dictsort %}{{ key }}:"
    "{% if value is string %}MARK{{ value }}MARK{% else %}{{ value | tojson }}{% endif %}{{ ',' if not loop.last }}"
    "{% endfor %}{{ '}' }}END",
)
TEMPLATES = {
    "hermes": _TURNS.replace("CALL", "\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>"),
    "llama3": "Environment: ipython "
    + _TURNS.replace(
        "CALL", """{{ '{"name": "' + c.function.name + '", "parameters": ' }}{{ c.function.arguments | tojson }}}"""
    ),
    "mistral": _TURNS.replace("CALL", "[TOOL_CALLS] [{{ c.function | tojson }}]"),
    "mistral-tekken": _TURNS.replace("CALL", "[TOOL_CALLS][{{ c.function | tojson }}]"),
    "mistral-args": _TURNS.replace(
        "CALL", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
    ),
    "phi4": _TURNS.replace("CALL", "<|tool_call|>{{ c.function | tojson }}<|/tool_call|>"),
    "granite": _TURNS.replace("CALL", "<|tool_call|>[{{ c.function | tojson }}]"),
    "nemotron": _TURNS.replace("CALL", "<TOOLCALL>[{{ c.function | tojson }}]</TOOLCALL>"),
    "harmony": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
    "{% set c = m.tool_calls[0].function %}{{ '<|start|>assistant<|channel|>commentary to=functions.' + c.name }}"
    "{{ ' <|constrain|>json<|message|>' }}{{ c.arguments | tojson }}{{ '<|call|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
    "lfm2": _IN_PYTHON.replace("START", "<|tool_call_start|>[")
    .replace("END", "]<|tool_call_end|>")
    .replace("BETWEEN", "', '")
    .replace("{{ tools", "List of tools: {{ tools"),
    "olmo3": _IN_PYTHON.replace("START", "<function_calls>")
    .replace("END", "</function_calls>")
    .replace("BETWEEN", "'\n'"),
    "qwen3-coder": _IN_TAGS.replace("START", "<tool_call>\n<function=")
    .replace("BEHIND_NAME", ">\n")
    .replace("BEFORE_KEY", "<parameter=")
    .replace("BEHIND_KEY", ">\n")
    .replace("BEHIND_VALUE", "\n</parameter>\n")
    .replace("END", "</function>\n</tool_call>"),
    "seed-oss": _IN_TAGS.replace("START", "<seed:tool_call>\n<function=")
    .replace("BEHIND_NAME", ">\n")
    .replace("BEFORE_KEY", "<parameter=")
    .replace("BEHIND_KEY", ">")
    .replace("BEHIND_VALUE", "</parameter>\n")
    .replace("END", "</function>\n</seed:tool_call>"),
    "glm": _IN_TAGS.replace("START", "<tool_call>")
    .replace("BEHIND_NAME", "\n")
    .replace("BEFORE_KEY", "<arg_key>")
    .replace("BEHIND_KEY", "</arg_key>\n<arg_value>")
    .replace("BEHIND_VALUE", "</arg_value>\n")
    .replace("END", "</tool_call>"),
    "gemma4": _MARKED.replace("START", "<|tool_call>").replace("MARK", '<|"|>').replace("END", "<tool_call|>"),
    "functiongemma": _MARKED.replace("START", "<start_function_call>")
    .replace("MARK", "<escape>")
    .replace("END", "<end_function_call>"),
    "generic": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}",
}
# What such a model writes to call two tools, or one where it cannot call two.
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": OSLO}\n</tool_call>\n'
    '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    "llama3": '{"name": "get_weather", "parameters": OSLO}',
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": OSLO}, {"name": "stop", "arguments": {}}]',
    "mistral-tekken": '[TOOL_CALLS][{"name": "get_weather", "arguments": OSLO}, {"name": "stop", "arguments": {}}]',
    "mistral-args": "[TOOL_CALLS]get_weather[ARGS]OSLO[TOOL_CALLS]stop[ARGS]{}",
    "phi4": '<|tool_call|>{"name": "get_weather", "arguments": OSLO}<|/tool_call|>'
    '<|tool_call|>{"name": "stop", "arguments": {}}<|/tool_call|>',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": OSLO}, {"name": "stop", "arguments": {}}]',
    "nemotron": '<TOOLCALL>[{"name": "get_weather", "arguments": OSLO}, {"name": "stop", "arguments": {}}]</TOOLCALL>',
    "harmony": "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>OSLO",
    "lfm2": "<|tool_call_start|>[get_weather(OSLO), stop()]<|tool_call_end|>",
    "olmo3": "<function_calls>get_weather(OSLO)\nstop()</function_calls>",
    "qwen3-coder": "<tool_call>\n<function=get_weather>\nOSLO</function>\n</tool_call>\n"
    "<tool_call>\n<function=stop>\n</function>\n</tool_call>",
    "seed-oss": "<seed:tool_call>\n<function=get_weather>\nOSLO</function>\n</seed:tool_call>\n"
    "<seed:tool_call>\n<function=stop>\n</function>\n</seed:tool_call>",
    "glm": "<tool_call>get_weather\nOSLO</tool_call>\n<tool_call>stop\n</tool_call>",
    "gemma4": "<|tool_call>call:get_weather{OSLO}<tool_call|><|tool_call>call:stop{}<tool_call|>",
    "functiongemma": "<start_function_call>call:get_weather{OSLO}<end_function_call>"
    "<start_function_call>call:stop{}<end_function_call>",
    "generic": '<tool_call>\n{"name": "get_weather", "arguments": OSLO}\n</tool_call>',
}
ONE_CALL = ("llama3", "harmony", "generic")
EVERY_FORMAT = pytest.mark.parametrize("name", [row.name for row in FORMATS])


def row(name: str) -> ToolFormat:
    return next(format_ for format_ in FORMATS if format_.name == name)


def with_template(model: LanguageModel, name: str) -> LanguageModel:
    model.chat_template = ChatTemplate(TEMPLATES[name])
    return model


def written(name: str) -> str:
    oslo = json.dumps(OSLO)
    if row(name).is_python:
        oslo = ", ".join(f"{key}={json.dumps(value)}" for key, value in OSLO.items())
    elif tags := row(name).tags:
        oslo = "".join(
            tags.before_key + key + tags.behind_key + value + tags.value_end + tags.behind_value
            for key, value in OSLO.items()
        )
    elif quote := row(name).quote:
        oslo = ",".join(f"{key}:{quote}{value}{quote}" for key, value in OSLO.items())
    return WRITTEN[name].replace("OSLO", oslo)


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """Return one for all constraints, which keep what they make of a tokenizer as long as it lives."""
    return Tokenizer.load(tiny_model_path())


# Tests ask for one text after the other: to make a grammar and to compile it takes ten times as long as to follow one.
def must_call(tool: dict[str, Any], name: str, *, parallel: bool = False) -> Constraint | None:
    """Return the constraint of a model that must call the tool."""
    return _must_call(json.dumps(tool), name, parallel)


@functools.lru_cache(maxsize=1)
def _must_call(tool: str, name: str, parallel: bool) -> Constraint | None:
    return tool_constraint([json.loads(tool)], "required", row(name), parallel=parallel)


@functools.lru_cache(maxsize=1)
def _started(constraint: Constraint) -> ConstraintMatcher:
    return constraint.compile(tiny_tokenizer())


def accepts(constraint: Constraint | None, text: str) -> bool:
    """Say whether a model that is held to the constraint may write this, and nothing after it."""
    assert constraint is not None
    assert not constraint.after
    # Without the masks, which take most of the time; answers that models write go through them.
    matcher, ids = _started(constraint)._matcher.deep_copy(), tiny_tokenizer().encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_stopped())


def taken(name: str, pieces: list[str] | str, parameters: Any = None) -> tuple[str, list[tuple[str, str]], str | None]:
    """Return what is shown of an answer in pieces, the calls in it, and its reason."""
    parser = ToolCallParser(row(name), {"f": parameters or {}})
    chunks = [Chunk(text=piece, token_ids=(1,)) for piece in pieces]
    chunks.append(Chunk(text="", token_ids=(1,), finish_reason="stop"))
    read = [parser.take(chunk) for chunk in chunks]
    deltas = [delta for chunk in read for delta in chunk.tool_calls]
    calls = [
        (str(delta.name), "".join(part.arguments for part in deltas if part.index == delta.index))
        for delta in deltas
        if delta.id
    ]
    return "".join(chunk.text for chunk in read), calls, read[-1].finish_reason

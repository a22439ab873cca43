"""OpenAI's custom tools, whose input is one text: for the model they are functions with one parameter.

https://platform.openai.com/docs/guides/function-calling#custom-tools
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from edgelm.completion import Chunk, ToolCallDelta
from edgelm.server.schema import TEXT, choice, need, record
from edgelm.structure.reasoning import Parser
from edgelm.structure.regular_grammar import pattern_of
from edgelm.structure.schema_patterns import in_all_scripts, refuse_rusts_sets

_GRAMMAR = {"syntax": choice("lark", "regex"), "definition": TEXT}
# Of Chat Completions, and of Responses, where a grammar's fields stand beside the type.
CHAT_FORMAT = record(
    {"type": choice("text", "grammar"), "grammar": record(_GRAMMAR, required=tuple(_GRAMMAR))}, required=("type",)
)
FORMAT = record({"type": choice("text", "grammar"), **_GRAMMAR}, required=("type",))
_INPUT = "input"
_HEAD = re.compile(rf'\s*\{{\s*"{_INPUT}"\s*:\s*"')
# Whole characters of a JSON string; one beyond U+FFFF can be two escapes.
_WHOLE = re.compile(
    r'(?:[^"\\]|\\[^u]|\\u(?![dD][89abAB])[0-9A-Fa-f]{4}|\\u[0-9A-Fa-f]{4}(?:\\u[0-9A-Fa-f]{4}|(?=[^\\]|\\[^u])))*+'
)
_ESCAPES = re.compile(r'(?:\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4})+')


def custom_names(tools: Collection[Mapping[str, Any]]) -> frozenset[str]:
    """Return the names of those of a chat request's tools that are custom."""
    return frozenset(tool["custom"]["name"] for tool in tools if tool["type"] == "custom" and tool.get("custom"))


def as_function(tool: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Return a tool of a chat request as a function.

    Raises:
        ApiError: 400, what its type needs is missing.
        ConfigError: its grammar is none that can be enforced inside of a call.
    """
    need(tool, place, tool["type"])
    if tool["type"] == "function":  # alone, as templates write all that is there into the prompt
        shown = {name: value for name, value in tool["function"].items() if name != "cache_control"}
        return {"type": "function", "function": shown}
    custom = tool["custom"]
    form = custom.get("format") or {"type": "text"}
    schema: dict[str, Any] = {"type": "string"}
    if form["type"] == "grammar":
        need(form, f"{place}.custom.format", "grammar")
        grammar = form["grammar"]
        pattern = grammar["definition"]
        if grammar["syntax"] == "lark":
            schema["description"] = f"A text of this grammar:\n{pattern}"  # which says more to a model than the pattern
            pattern = pattern_of(pattern)
        refuse_rusts_sets(pattern)
        schema["pattern"] = f"^(?:{in_all_scripts(pattern)})$"
    parameters = {"type": "object", "properties": {_INPUT: schema}, "required": [_INPUT], "additionalProperties": False}
    told = {name: custom[name] for name in ("name", "description") if custom.get(name) is not None}
    return {"type": "function", "function": {**told, "parameters": parameters, "strict": "pattern" in schema}}


def as_call(call: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    """Return a call of an earlier answer as one of a function.

    Raises:
        ApiError: 400, what its type needs is missing.
    """
    kind = call.get("type") or "function"
    need(call, place, kind)
    if kind == "function":
        return call
    arguments = json.dumps({_INPUT: call["custom"]["input"]}, ensure_ascii=False)
    return {
        "id": call.get("id"),
        "type": "function",
        "function": {"name": call["custom"]["name"], "arguments": arguments},
    }


class CustomCalls:
    """Take the chunks of an answer; hand the calls of custom tools on with their input in the place of arguments.

    make_parser: makes what takes the calls apart. names: the custom tools'.
    """

    def __init__(self, make_parser: Callable[[], Parser], names: Collection[str]) -> None:
        self._parser = make_parser()
        self._names = names
        self._index = 0
        self._input: _Input | None = None  # of the call that is being written, if it is one of theirs

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its calls as they are handed on."""
        chunk = self._parser.take(chunk)
        deltas = [said for delta in chunk.tool_calls for said in self._taken(delta)]
        begins = any(delta.name is not None for delta in chunk.tool_calls)
        # What is said behind a call ends it: its rest must not come later.
        if chunk.finish_reason is not None or ((chunk.text or chunk.reasoning) and not begins):
            deltas += self._end()
        return dataclasses.replace(chunk, tool_calls=tuple(deltas))

    def _taken(self, delta: ToolCallDelta) -> Iterator[ToolCallDelta]:
        if delta.name is not None:
            yield from self._end()
            self._index, self._input = delta.index, _Input() if delta.name in self._names else None
        if self._input is not None:
            delta = dataclasses.replace(delta, arguments=self._input.push(delta.arguments))
        if delta.name is not None or delta.arguments:
            yield delta

    def _end(self) -> Iterator[ToolCallDelta]:
        rest = self._input.flush() if self._input is not None else ""
        if rest:
            yield ToolCallDelta(index=self._index, arguments=rest)
        self._input = None


class _Input:
    """Read the input out of a call's arguments, a piece of JSON at a time."""

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False

    def push(self, piece: str) -> str:
        """Take a piece; return what is known of the input now."""
        self._held += piece
        if not self._is_inside:
            if (head := _HEAD.match(self._held)) is None:
                return ""
            self._held, self._is_inside = self._held[head.end() :], True
        whole = _WHOLE.match(self._held)
        text = whole[0] if whole is not None else ""
        self._held = self._held[len(text) :]
        return _decoded(text)

    def flush(self) -> str:
        """Return the input of a call that was written otherwise than one held to its tool: all of its arguments."""
        if self._is_inside:
            return ""
        try:
            arguments = json.loads(self._held)
        except (ValueError, RecursionError):
            return self._held
        given = arguments.get(_INPUT) if isinstance(arguments, dict) else None
        return given if isinstance(given, str) else self._held


def _decoded(text: str) -> str:
    # An escape that JSON does not have stays as it stands.
    decoded = _ESCAPES.sub(lambda run: str(json.loads(f'"{run[0]}"')), text)
    return decoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

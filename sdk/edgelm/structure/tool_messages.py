"""Tools in a conversation: definitions, calls and results as a chat template takes them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import reprlib
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.completion import Message, ToolCall
from edgelm.errors import ChatTemplateError
from edgelm.structure.python_call_reader import NAME
from edgelm.structure.tool_formats import ToolFormat
from edgelm.text.chat_template import THOUGHT, check_conversation, no_message

_TEXT_PARTS = ("text", "input_text", "output_text")  # as OpenAI's two protocols name them
_ID = re.compile(r"[0-9A-Za-z]{9}")
_DEFINITIONS = """\
You can call functions to answer. Between <tools> and </tools> is one function a line, as JSON:
<tools>
{definitions}
</tools>

To call a function, write its name and its arguments as one JSON object between these marks, and nothing after it:
<tool_call>
{{"name": "the function", "arguments": {{"parameter": "value"}}}}
</tool_call>
The result of each call will stand between <tool_response> and </tool_response>."""


def show_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], format: ToolFormat
) -> tuple[list[Message], dict[str, Any], dict[str, str]]:
    """Return a conversation's messages, and the template's variables beside them, so that the template shows the tools;
    and the marks in the messages, each with what stands in its place once the template has written them.

    Arguments become objects, and ids such as every template takes. For a template that knows no tools, definitions,
    calls and results become text: of the system message (of the user's first turn where the template takes none), of
    the answers, and of the user's turns. For one that shows tools and no calls, or no results, those become text too;
    marks stand for the format's markers around calls. For one that reads one text before a call, what was thought and
    what was said become that. Where it shows one call a turn, several become turns, each followed by its result.

    Raises:
        ChatTemplateError: a message is none, or its tool_calls are not in OpenAI's form.
    """
    check_conversation(messages)
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
    _pair_results(turns)
    if format.takes_tools and not format.is_parallel:
        turns = _one_call_a_turn(turns)
    if format.takes_thinking:
        _join_thinking(turns)
    if not format.is_json:
        _name_unfinished(turns)
    if not format.takes_results:
        turns = _with_results_said(turns)
    if not format.takes_tools:
        return _as_text(turns, tools, format), {}, {}  # type: ignore[return-value]
    marks = {} if format.takes_calls else _write_calls(turns, format)
    return turns, {"tools": [_definition(tool) for tool in tools]} if tools else {}, marks  # type: ignore[return-value]


def _definition(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a definition as templates read it: many know a function by that name alone."""
    is_alone = isinstance(tool, Mapping) and "function" not in tool
    return {"type": "function", "function": tool} if is_alone else tool


def _turn(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    if "content" not in message and not message.get("tool_calls"):  # misspelt, it would be an empty message
        raise no_message(message, place)
    turn: dict[str, Any] = {**message, "content": _text_of(message.get("content"), f"{place}['content']")}
    if turn.get("tool_call_id") is not None:
        turn["tool_call_id"] = _short_id(turn["tool_call_id"])
    calls = turn.pop("tool_calls", None) or ()
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise ChatTemplateError(f"{place}['tool_calls'] is {calls!r}; it must be a list of calls.")
    for key in THOUGHT:
        if turn.get(key) is not None:
            turn[key] = _text_of(turn[key], f"{place}[{key!r}]")
    if calls:
        turn["tool_calls"] = [_call(call, f"{place}['tool_calls'][{i}]") for i, call in enumerate(calls)]
    return turn


def _text_of(content: object, place: str) -> str:
    """Return a content as the text that it is; templates would write a list of parts as Python does, or fail on it."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content if isinstance(content, (list, tuple)) else (None,):
        if (
            not isinstance(part, Mapping)
            or part.get("type") not in _TEXT_PARTS
            or not isinstance(part.get("text"), str)
        ):
            raise ChatTemplateError(
                f"{place} has {reprlib.repr(content if part is None else part)}; a content is a text, or a list of "
                "parts such as {'type': 'text', 'text': ...}, and these models read nothing else. json.dumps makes a "
                "text of other values."
            )
        texts.append(part["text"])
    return "".join(texts)


def _call(call: object, place: str) -> dict[str, Any]:
    value: Any = {"id": call.id, "function": dataclasses.asdict(call)} if isinstance(call, ToolCall) else call
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ChatTemplateError(
            f"{place} is {call!r}; a call is {{'id': ..., 'function': {{'name': ..., 'arguments': ...}}}}."
        )
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        # Templates write an object as JSON; one that a model left unfinished stays the text that it is.
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {
        "id": _short_id(value.get("id") or place),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _short_id(id_: object) -> str:
    """Return an id of nine letters and digits, as Mistral's templates demand; equal ids stay equal."""
    text = str(id_)
    return text if _ID.fullmatch(text) else hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:9]


def _pair_results(turns: Sequence[dict[str, Any]]) -> None:
    """Give each result the name of the tool that was called, and the call's id, both of which some templates demand.

    A result without an id, as Ollama's protocol has them, is that of the first call of its name without one.
    """
    names = {call["id"]: call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())}
    waiting: list[dict[str, Any]] = []
    for turn in turns:
        waiting = [] if turn.get("role") == "user" else [*waiting, *turn.get("tool_calls", ())]
        if turn.get("role") != "tool":
            continue
        if turn.get("tool_call_id") is None and waiting:
            name = turn.get("name")
            turn["tool_call_id"] = min(waiting, key=lambda call: call["function"]["name"] != name)["id"]
        waiting = [call for call in waiting if call["id"] != turn.get("tool_call_id")]
        if "name" not in turn and turn.get("tool_call_id") in names:
            turn["name"] = names[turn["tool_call_id"]]


def _one_call_a_turn(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Part answers with several calls: GPT-OSS's template writes the first call alone, and gives its name to every
    result; Llama 3's refuses them.
    """
    parted: list[dict[str, Any]] = []
    rest = deque(turns)
    while rest:
        turn = rest.popleft()
        calls = turn.get("tool_calls", ())
        if len(calls) < 2:
            parted.append(turn)
            continue
        results = []
        while rest and rest[0].get("role") == "tool":
            results.append(rest.popleft())
        for number, call in enumerate(calls):
            said = turn if number == 0 else {"role": turn["role"], "content": ""}
            parted.append({**said, "tool_calls": [call]})
            own = [result for result in results if result.get("tool_call_id") == call["id"]]
            parted += own
            for result in own:
                results.remove(result)
        parted += results
    return parted


def _join_thinking(turns: Sequence[dict[str, Any]]) -> None:
    for turn in turns:
        if "tool_calls" in turn:
            thoughts = [turn.pop(name, None) for name in THOUGHT]
            turn["thinking"] = "\n\n".join(filter(None, (next(filter(None, thoughts), None), turn["content"])))
            turn["content"] = ""


def _name_unfinished(turns: Sequence[dict[str, Any]]) -> None:
    """Give arguments that a model left unfinished a name, as templates that write no JSON read each by its own."""
    for turn in turns:
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            if not isinstance(function["arguments"], Mapping):
                function["arguments"] = {"arguments": function["arguments"]}


def _with_results_said(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make turns of the user's of the results."""
    said: list[dict[str, Any]] = []
    for turn in turns:
        if turn.get("role") != "tool":
            said.append(turn)
            continue
        result = f"<tool_response>\n{turn['content']}\n</tool_response>"
        # One turn for the results of one answer: many templates want the roles to alternate.
        if said and said[-1].get("role") == "user" and said[-1]["content"].endswith("</tool_response>"):
            said[-1]["content"] += "\n" + result
        else:
            said.append({"role": "user", "content": result})
    return said


def _as_text(
    turns: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]], format: ToolFormat
) -> list[dict[str, Any]]:
    for turn in turns:
        if "tool_calls" in turn:
            turn["content"] = _with_calls(turn, format)
            del turn["tool_calls"]
    written = list(turns)
    if tools:
        definitions = "\n".join(
            _as_json(tool.get("function", tool), f"The definition tools[{i}]") for i, tool in enumerate(tools)
        )
        text = _DEFINITIONS.format(definitions=definitions)
        first = next((turn for turn in written if turn.get("role") == "user"), None)
        if first is not None and not format.takes_system:
            first["content"] = f"{text}\n\n{first['content']}"
        elif written and written[0].get("role") == "system":
            written[0]["content"] = f"{written[0]['content']}\n\n{text}"
        else:
            written.insert(0, {"role": "system", "content": text})
    return written


def _write_calls(turns: Sequence[dict[str, Any]], format: ToolFormat) -> dict[str, str]:
    """Write the calls into the answers; return the marks that stand for the markers, which may be control tokens."""
    marks = {secrets.token_hex(16): marker for marker in (format.start, format.end)}
    start, end = marks
    for turn in turns:
        if "tool_calls" in turn:
            turn["content"] = _with_calls(turn, dataclasses.replace(format, start=start, end=end))
    return marks


def _with_calls(turn: Mapping[str, Any], format: ToolFormat) -> str:
    write = _in_python if format.is_python else _as_json
    calls = [write(call["function"], "A call of a tool") for call in turn["tool_calls"]]
    if format.is_list:
        calls = [format.separator.join(calls).join(format.brackets)]
    texts = [f"{format.start}{format.before}{call}{format.behind}{format.end}" for call in calls]
    return "\n".join(filter(None, (turn["content"], format.separator.join(texts))))


def _in_python(function: Mapping[str, Any], what: str) -> str:
    arguments = function["arguments"]
    plain = {name: value for name, value in arguments.items() if NAME.fullmatch(name)}
    others = {name: value for name, value in arguments.items() if name not in plain}
    parts = [f"{name}={_as_json(value, what)}" for name, value in plain.items()]
    if others:
        parts.append(f"**{_as_json(others, what)}")
    return f"{function['name']}({', '.join(parts)})"


def _as_json(value: object, what: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatTemplateError(f"{what} is not JSON: {error}.") from error

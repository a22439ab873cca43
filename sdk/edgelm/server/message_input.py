"""What a request to /v1/messages may have, and the chat request that it amounts to."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Mapping
from typing import Any

from edgelm.server.api_error import ApiError
from edgelm.server.chat_messages import CONTENT, MAX_MESSAGES, MAX_TOOLS, TOOL_NAME, text_of
from edgelm.server.sampling_fields import SAMPLING, STOPS
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, need, number, record, whole

# What stands in a message of each role.
_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
}
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "tool_result": ("tool_use_id",),
    "tool_use": ("id", "name", "input"),
    "thinking": ("thinking",),
    "redacted_thinking": (),
}
_BLOCK = record(
    {
        "type": choice(*_NEEDS),
        "text": TEXT,
        "thinking": TEXT,
        "id": TEXT,
        "name": TOOL_NAME,
        "input": ANY_OBJECT,
        "tool_use_id": TEXT,
        "content": CONTENT,
        "is_error": BOOLEAN,
    },
    required=("type",),
    ignored=("cache_control", "citations", "signature", "data", "caller"),
    refused={"source": "these models read text alone, and no URL is ever fetched."},
)
_TOOL = record(
    {
        "type": choice("custom"),
        "name": TOOL_NAME,
        "description": TEXT,
        "input_schema": ANY_OBJECT,
        "strict": BOOLEAN,
        "allowed_callers": listing(choice("direct"), most=1),
    },
    required=("name", "input_schema"),
    ignored=("cache_control", "defer_loading", "eager_input_streaming"),
    refused={"input_examples": "write them into the description."},
)
_THINKING = record(
    {"type": choice("enabled", "disabled", "adaptive"), "budget_tokens": whole(1)},
    required=("type",),
    ignored=("display",),  # what is thought comes as it is
)
_OUTPUT = record(
    {
        "effort": choice("low", "medium", "high", "xhigh", "max"),
        "format": record({"type": choice("json_schema"), "schema": ANY_OBJECT}, required=("type", "schema")),
    }
)
# Which of the earlier thinking a model reads, its chat template says.
_CONTEXT_EDIT = record({"type": choice("clear_thinking_20251015")}, required=("type",), ignored=("keep",))
_COUNTED: dict[str, Schema] = {
    "model": TEXT,
    "messages": listing(
        record({"role": choice(*_BLOCKS), "content": {"anyOf": [TEXT, listing(_BLOCK, most=MAX_MESSAGES)]}},
               required=("role", "content")),
        fewest=1,
        most=MAX_MESSAGES,
    ),
    "system": CONTENT,
    "tools": listing(_TOOL, most=MAX_TOOLS),
    "tool_choice": record(
        {"type": choice("auto", "any", "tool", "none"), "name": TEXT, "disable_parallel_tool_use": BOOLEAN},
        required=("type",),
    ),
    "thinking": _THINKING,
    "output_config": _OUTPUT,
    "context_management": record({"edits": listing(_CONTEXT_EDIT, most=MAX_TOOLS)}),
}  # fmt: skip
# They say who asks, where, how fast, and for how long what is computed is kept.
_HARMLESS = (
    "metadata", "service_tier", "inference_geo", "speed", "cache_control", "diagnostics", "user_profile_id",
)  # fmt: skip
_REFUSED: Mapping[str, str] = {
    "container": "there is none here.",
    "mcp_servers": "the client calls tools.",
    "stop": "use stop_sequences.",
    "max_tokens_to_sample": "use max_tokens.",
    "thread": "nothing is kept here; send the whole conversation.",
}
COUNT_BODY = record(_COUNTED, required=("messages",), ignored=_HARMLESS, refused=_REFUSED)
BODY = record(
    {
        **_COUNTED,
        **{name: schema for name, schema in SAMPLING.items() if name != "stop"},
        "temperature": number(0, 1),
        "max_tokens": whole(0),  # 0: the prompt is read for the requests to come
        "stop_sequences": STOPS,
        "stream": BOOLEAN,
    },
    required=("messages", "max_tokens"),
    ignored=_HARMLESS,
    refused=_REFUSED,
)


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat request of the same meaning.

    Raises:
        ApiError: 400, a block of a message has not what its type needs, or stands where its type does not.
    """
    chat = {name: body[name] for name in ("max_tokens", *SAMPLING) if name in body}
    if "stop_sequences" in body:
        chat["stop"] = body["stop_sequences"]
    chat["messages"] = _messages(body)
    chat["tools"] = [{"type": "function", "function": _function(tool)} for tool in body.get("tools", ())]
    wanted = body.get("tool_choice") or {"type": "auto"}
    chat["tool_choice"] = "required" if wanted["type"] == "any" else wanted["type"]
    if wanted["type"] == "tool":
        need(wanted, "tool_choice", "name")
        chat["tool_choice"] = {"type": "function", "function": {"name": wanted["name"]}}
    chat["parallel_tool_calls"] = not wanted.get("disable_parallel_tool_use")
    form = (body.get("output_config") or {}).get("format")
    if form is not None:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"schema": form["schema"], "strict": True}}
    return chat


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    # `properties` and `required` of a schema may be null, as a field of the request may.
    parameters = {name: value for name, value in tool["input_schema"].items() if value is not None}
    given = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return given | {"parameters": parameters}


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    system = text_of(body.get("system"), "system")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    for i, given in enumerate(body["messages"]):
        role, place, content = given["role"], f"messages[{i}].content", given["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for j, block in enumerate(blocks):
            _check(block, role, f"{place}[{j}]")
        if role == "system" and messages and messages[-1]["role"] != "system":
            role = "user"  # Claude Code's requests have one behind the first turn, where many templates take none
        messages += _of_blocks(role, blocks, place)
    turns: list[dict[str, Any]] = []
    for role, group in itertools.groupby(messages, operator.itemgetter("role")):
        of_role = list(group)
        turns += of_role if role == "tool" else [_joined(of_role)]
    return turns


def _of_blocks(role: str, blocks: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    """Return the messages that one message is in OpenAI's form: each result of a tool is one of its own."""
    said: dict[str, Any] = {"role": role, "content": "".join(_all(blocks, "text"))}
    results = [
        {"role": "tool", "tool_call_id": block["tool_use_id"], "content": _result(block, f"{place}[{j}].content")}
        for j, block in enumerate(blocks)
        if block["type"] == "tool_result"
    ]
    if calls := [_call(block) for block in blocks if block["type"] == "tool_use"]:
        said["tool_calls"] = calls
    if thoughts := "\n\n".join(_all(blocks, "thinking")):
        said["reasoning_content"] = thoughts
    return results if results and not said["content"] else [*results, said]


def _all(blocks: list[dict[str, Any]], kind: str) -> list[str]:
    return [block[kind] for block in blocks if block["type"] == kind]


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(block["input"], ensure_ascii=False)
    return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}}


def _result(block: Mapping[str, Any], place: str) -> str:
    text = text_of(block.get("content"), place) or ""
    return f"Error: {text}" if block.get("is_error") else text


def _joined(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return turns of one role as one, as the protocol and many templates have it."""
    joined = turns[0]
    for name in ("content", "reasoning_content"):
        if texts := [turn[name] for turn in turns if turn.get(name)]:
            joined[name] = "\n\n".join(texts)
    if calls := [call for turn in turns for call in turn.get("tool_calls", ())]:
        joined["tool_calls"] = calls
    return joined


def _check(block: Mapping[str, Any], role: str, place: str) -> None:
    if block["type"] not in _BLOCKS[role]:
        raise ApiError(
            400,
            f"{place} is a block of type {block['type']!r}; with the role {role!r} go {', '.join(_BLOCKS[role])}.",
            param=place,
        )
    need(block, place, *_NEEDS[block["type"]])

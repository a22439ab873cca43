"""What a request to /v1/responses may have, and the chat request that it amounts to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgelm.server.api_error import ApiError
from edgelm.server.chat_messages import CONTENT, MAX_MESSAGES, MAX_TOOLS, TEMPLATE_VARIABLES, TOOL_NAME, text_of
from edgelm.server.custom_tools import FORMAT
from edgelm.server.forms import FORMS, OF_RESPONSES
from edgelm.server.logprobs import LOGPROBS
from edgelm.server.sampling_fields import HARMLESS, REFUSED, SAMPLING
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, need, record, whole

# The types of items, and what each must have.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "reasoning": (),
    "item_reference": (),
}
_ITEM = record(
    {
        "type": choice(*_NEEDS),
        "role": choice("system", "developer", "user", "assistant"),
        "content": CONTENT,
        "call_id": TEXT,
        "name": TOOL_NAME,
        "namespace": TEXT,
        "arguments": TEXT,
        "input": TEXT,
        "output": CONTENT,
    },
    ignored=("id", "status", "summary", "encrypted_content", "phase"),
)
_TOOL: dict[str, Schema] = {
    "name": TOOL_NAME,
    "description": TEXT,
    "parameters": ANY_OBJECT,
    "strict": BOOLEAN,
    "format": FORMAT,
}
_CALLED = ("function", "custom")
_CHOSEN = record({"type": choice(*_CALLED), "name": TEXT}, required=("type", "name"))
_WITH_LOGPROBS = "message.output_text.logprobs"
# What a client may ask for besides; of the rest there is none here.
_INCLUDED = (
    _WITH_LOGPROBS,
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
)
_FORMAT = record(
    {"type": choice("text", "json_object", "json_schema"), "schema": ANY_OBJECT, "name": TEXT, "strict": BOOLEAN},
    required=("type",),
    ignored=("description",),
)
# llama.cpp's and vLLM's, whose servers take them here too.
_OTHER_FORMS = {name: schema for name, schema in FORMS.items() if name != "response_format"}
BODY = record(
    {
        "model": TEXT,
        "input": {"anyOf": [TEXT, listing(_ITEM, fewest=1, most=MAX_MESSAGES)]},
        "instructions": TEXT,
        **{name: schema for name, schema in SAMPLING.items() if name != "stop"},
        "max_output_tokens": whole(1),
        "stream": BOOLEAN,
        "reasoning": record(
            {"effort": TEMPLATE_VARIABLES["reasoning_effort"]},
            ignored=("summary", "generate_summary"),  # what is thought comes as it is
        ),
        "text": record({"format": _FORMAT}, refused={"verbosity": "these models have no such setting."}),
        "tools": listing(
            record(
                {
                    "type": choice(*_CALLED, "namespace"),
                    **_TOOL,
                    "tools": listing(
                        record({"type": choice(*_CALLED), **_TOOL}, required=("type", "name")),
                        most=MAX_TOOLS,
                    ),
                },
                required=("type", "name"),
            ),
            most=MAX_TOOLS,
        ),
        "tool_choice": {
            "anyOf": [
                choice("none", "auto", "required"),
                record(
                    {
                        "type": choice(*_CALLED, "allowed_tools"),
                        "name": TEXT,
                        "mode": choice("auto", "required"),
                        "tools": listing(_CHOSEN, fewest=1, most=MAX_TOOLS),
                    },
                    required=("type",),
                ),
            ]
        },
        "parallel_tool_calls": BOOLEAN,
        **_OTHER_FORMS,
        "truncation": choice("disabled", "auto"),
        "include": listing(choice(*_INCLUDED), most=len(_INCLUDED)),
        "top_logprobs": LOGPROBS["top_logprobs"],
    },
    required=("input",),
    ignored=(*HARMLESS, "client_metadata", "max_tool_calls", "stream_options"),
    refused={
        **REFUSED,
        "response_format": "use text.format.",
        **dict.fromkeys(
            ("previous_response_id", "conversation"), "nothing is kept here; send the whole conversation as input."
        ),
        "background": "an answer ends with its request.",
        "prompt": "nothing is kept here; send the text.",
        "reasoning_effort": "use reasoning.effort.",
        "context_management": "truncation says what goes.",
    },
)


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chat request of the same meaning.

    Raises:
        ApiError: 400, an item of the input has not what its type needs; or it asks for other tokens' log-probabilities
            without the answer's own.
    """
    chat = {name: body[name] for name in ("parallel_tool_calls", *_OTHER_FORMS, *SAMPLING) if name in body}
    chat["messages"] = _messages(body)
    if "max_output_tokens" in body:
        chat["max_tokens"] = body["max_output_tokens"]
    if body.get("truncation") == "auto":
        chat.setdefault("context_shift", 0)
    chat["logprobs"] = _WITH_LOGPROBS in body.get("include", ())
    chat["top_logprobs"] = body.get("top_logprobs", 0)
    if chat["top_logprobs"] and not chat["logprobs"]:
        raise ApiError(400, f"top_logprobs needs include: [{_WITH_LOGPROBS!r}].", param="top_logprobs")
    if (effort := (body.get("reasoning") or {}).get("effort")) is not None:
        chat["reasoning_effort"] = effort
    tools = tools_of(body)
    if len(tools) > MAX_TOOLS:
        raise ApiError(400, f"There are {len(tools)} tools in all; {MAX_TOOLS} may be offered.", param="tools")
    chat["tools"] = [_tool(namespace, tool) for namespace, tool in tools]
    chat["tool_choice"] = _tool_choice(body.get("tool_choice", "auto"))
    if form := (body.get("text") or {}).get("format"):
        if form["type"] == "json_schema":
            need(form, OF_RESPONSES, "schema")
        chat[OF_RESPONSES] = form
    return chat


def tools_of(body: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Return the tools that a request offers, each with the namespace that it stands in."""
    found: list[tuple[str | None, Mapping[str, Any]]] = []
    for tool in body.get("tools", ()):
        if tool["type"] == "namespace":
            found += [(tool["name"], function) for function in tool.get("tools") or ()]
        else:
            found.append((None, tool))
    return found


def namespaces_of(body: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the namespace and the name of each tool in one, by what the model calls it."""
    return {_full_name(space, tool["name"]): (space, tool["name"]) for space, tool in tools_of(body) if space}


def custom_names_of(body: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the custom tools that a request offers, as the model calls them."""
    return frozenset(_full_name(space, tool["name"]) for space, tool in tools_of(body) if tool["type"] == "custom")


def _tool_choice(wanted: str | Mapping[str, Any]) -> str | dict[str, Any]:
    if isinstance(wanted, str):
        return wanted
    kind = wanted["type"]
    if kind == "allowed_tools":
        need(wanted, "tool_choice", "mode", "tools")
        return {"type": kind, kind: {"mode": wanted["mode"], "tools": [*map(_chosen, wanted["tools"])]}}
    need(wanted, "tool_choice", "name")
    return _chosen(wanted)


def _chosen(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": tool["type"], tool["type"]: {"name": tool["name"]}}


def _tool(namespace: str | None, tool: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: tool[name] for name in _TOOL if tool.get(name) is not None}
    given["name"] = _full_name(namespace, tool["name"])
    if (form := given.pop("format", None)) and tool["type"] == "custom":
        grammar = {name: form[name] for name in ("syntax", "definition") if form.get(name) is not None}
        if form["type"] == "grammar":
            need(form, "tools.format", "syntax", "definition")
        given["format"] = {"type": form["type"], "grammar": grammar}
    return {"type": tool["type"], tool["type"]: given}


def _full_name(namespace: str | None, name: str) -> str:
    return f"{namespace}.{name}" if namespace else name


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    given = body["input"]
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    names: dict[str, str] = {}  # of the tools called, by the call's id
    thought: dict[str, str] = {}  # before the item that comes
    for i, item in enumerate(given):
        kind, place = item.get("type") or "message", f"input[{i}]"
        need(item, place, *_NEEDS[kind])
        if kind == "item_reference":
            raise ApiError(
                400,
                f"{place} refers to an item of an earlier answer, and nothing is kept here; send the item itself, as "
                "clients do with store: false.",
                param=place,
            )
        if kind == "reasoning":
            text = _text_of(item.get("content"))
            thought = {"reasoning_content": text} if text else {}
        elif kind == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            said = text_of(item["content"], f"{place}.content")
            of_answer = thought if role == "assistant" else {}
            if role == "system" and messages and messages[-1]["role"] == "system":
                messages[-1]["content"] += f"\n\n{said}"  # many templates take one such message, at the beginning
            else:
                messages.append({"role": role, "content": said, **of_answer})
            thought = {}
        elif kind in ("function_call", "custom_tool_call"):
            name = names[item["call_id"]] = _full_name(item.get("namespace"), item["name"])
            call = _call(item["call_id"], name, item, is_custom=kind == "custom_tool_call")
            if thought or not messages or messages[-1]["role"] != "assistant":  # else an answer said something first
                messages.append({"role": "assistant", "content": None, **thought})
            messages[-1].setdefault("tool_calls", []).append(call)
            thought = {}
        elif kind in ("function_call_output", "custom_tool_call_output"):
            messages.append(
                {
                    "role": "tool",
                    "content": text_of(item["output"], f"{place}.output"),
                    "tool_call_id": item["call_id"],
                    "name": names.get(item["call_id"]),
                }
            )
    return messages


def _call(call_id: str, name: str, item: Mapping[str, Any], *, is_custom: bool) -> dict[str, Any]:
    kind, field = ("custom", "input") if is_custom else ("function", "arguments")
    return {"id": call_id, "type": kind, kind: {"name": name, field: item[field]}}


def _text_of(content: str | list[dict[str, Any]] | None) -> str:
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content or ())

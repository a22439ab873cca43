"""Messages, tools and formats of a chat request: what they may be, and what the engine gets of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from edgelm.completion import Message
from edgelm.extras import require
from edgelm.generation_config import GenerationConfig
from edgelm.server.answers import Job
from edgelm.server.api_error import ApiError
from edgelm.server.custom_tools import CHAT_FORMAT, CustomCalls, as_call, as_function, custom_names
from edgelm.server.forms import FORMS
from edgelm.server.sampling_fields import MAX_TOKENS
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, need, record
from edgelm.structure.reasoning import Parser, reasoning_format
from edgelm.structure.tool_call_parser import LONGEST_NAME, ToolCallParser
from edgelm.structure.tool_formats import tool_format
from edgelm.structure.tools import Tool, ToolChoice, tool_parameters, tool_settings
from edgelm.text.thinking import EFFORT, SWITCHES, knows_thinking, thinking_variables

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel

_PASSED_ON = ("role", "tool_calls", "tool_call_id", "name", "reasoning_content")
MAX_MESSAGES = 2048
MAX_TOOLS = 128
# OpenAI has 64 and Anthropic 128 at most, and programs write the name of an MCP server before that of its tool.
TOOL_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}

PART = record({"type": TEXT, "text": TEXT, "refusal": TEXT}, required=("type",), open_ended=True)
CONTENT: Schema = {"anyOf": [TEXT, listing(PART, most=MAX_MESSAGES)]}
# The kinds of parts that are text -> the field that has it.
_TEXT_FIELDS: Mapping[str, str] = {**dict.fromkeys(("text", "input_text", "output_text"), "text"), "refusal": "refusal"}
_TOOL_KINDS = ("function", "custom")
_TOOL_CALL = record(
    {
        "id": TEXT,
        "type": choice(*_TOOL_KINDS),
        "function": record({"name": TOOL_NAME, "arguments": TEXT}, required=("name",)),
        "custom": record({"name": TOOL_NAME, "input": TEXT}, required=("name", "input")),
    },
    ignored=("index",),
)
_MESSAGE = record(
    {
        "role": choice("system", "developer", "user", "assistant", "tool"),
        "content": CONTENT,
        "refusal": TEXT,  # in the place of a content
        "tool_calls": listing(_TOOL_CALL, most=MAX_TOOLS),
        "tool_call_id": TEXT,
        "name": TEXT,
        "reasoning_content": TEXT,
        "reasoning": TEXT,  # the same, in newer servers
        "prefix": BOOLEAN,  # Mistral's: to go on with a last message, which is done anyway
    },
    required=("role",),
    # A proxy that speaks Anthropic's protocol adds the next three, litellm the last, where another server answered.
    ignored=("annotations", "audio", "cache_control", "thinking", "reasoning_details", "provider_specific_fields"),
    refused={"function_call": "use tool_calls."},
)
_FUNCTION = record(
    {"name": TOOL_NAME, "description": TEXT, "parameters": ANY_OBJECT, "strict": BOOLEAN},
    required=("name",),
    ignored=("cache_control",),
)
_CUSTOM = record({"name": TOOL_NAME, "description": TEXT, "format": CHAT_FORMAT}, required=("name",))
_CHOSEN: dict[str, Schema] = dict.fromkeys(_TOOL_KINDS, record({"name": TEXT}, required=("name",)))
_ALLOWED = record(
    {
        "mode": choice("auto", "required"),
        "tools": listing(
            record({"type": choice(*_TOOL_KINDS), **_CHOSEN}, required=("type",)), fewest=1, most=MAX_TOOLS
        ),
    },
    required=("mode", "tools"),
)
TEMPLATE_VARIABLES: dict[str, Schema] = {
    "chat_template_kwargs": ANY_OBJECT,
    "reasoning_effort": choice("none", "minimal", "low", "medium", "high", "xhigh", "max"),
}

FUNCTIONS = listing(
    record({"type": choice("function"), "function": _FUNCTION}, required=("type", "function")), most=MAX_TOOLS
)
CHAT: dict[str, Schema] = {
    "messages": listing(_MESSAGE, fewest=1, most=MAX_MESSAGES),
    "tools": listing(
        record(
            {"type": choice(*_TOOL_KINDS), "function": _FUNCTION, "custom": _CUSTOM},
            required=("type",),
            ignored=("cache_control",),
        ),
        most=MAX_TOOLS,
    ),
    "tool_choice": {
        "anyOf": [
            choice("none", "auto", "required"),
            record(
                {"type": choice(*_TOOL_KINDS, "allowed_tools"), **_CHOSEN, "allowed_tools": _ALLOWED},
                required=("type",),
            ),
        ]
    },
    "parallel_tool_calls": BOOLEAN,
    **FORMS,
    "max_tokens": MAX_TOKENS,
    "max_completion_tokens": MAX_TOKENS,
    **TEMPLATE_VARIABLES,
}


def messages_of(body: Mapping[str, Any]) -> list[Message]:
    """Return the conversation as a chat template takes it: contents are texts, `developer` is `system`.

    Raises:
        ApiError: 400, a part of a content is no text, or a call is incomplete.
    """
    messages: list[dict[str, Any]] = []
    for i, given in enumerate(body["messages"]):
        message = {name: given[name] for name in _PASSED_ON if given.get(name)}
        if "tool_calls" in message:
            place = f"messages[{i}].tool_calls"
            message["tool_calls"] = [as_call(call, f"{place}[{j}]") for j, call in enumerate(given["tool_calls"])]
        if given.get("reasoning"):
            message.setdefault("reasoning_content", given["reasoning"])
        content = (given.get("refusal") or None) if given.get("content") is None else given["content"]
        message["content"] = text_of(content, f"messages[{i}].content")
        if not message.get("tool_calls"):
            need(message, f"messages[{i}]", "content")
        message["role"] = "system" if message["role"] == "developer" else message["role"]
        messages.append(message)
    return cast(list[Message], messages)


def text_of(content: str | list[dict[str, Any]] | None, place: str) -> str | None:
    """Return a content as the text that it is; `place` is what the error names.

    Raises:
        ApiError: 400, a part of it is no text.
    """
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        field = _TEXT_FIELDS.get(part["type"])
        text = None if field is None else part.get(field)
        if text is None:
            raise ApiError(
                400,
                f"{place}[{i}] is a part of type {part['type'][:40]!r}; these models read text alone, and no URL is "
                "ever fetched.",
                param=f"{place}[{i}]",
            )
        texts.append(text)
    return "".join(texts)


def template_variables(
    model: LanguageModel, body: Mapping[str, Any], *, effort_field: str = "reasoning_effort"
) -> dict[str, object]:
    """Return what a request says to the chat template; what it gives by name wins over what an effort means.

    effort_field: the field that says the effort, as the client writes it.

    Raises:
        ApiError: 400, it asks for an effort, and the template knows none.
    """
    effort, given = body.get("reasoning_effort"), body.get("chat_template_kwargs") or {}
    meant = thinking(model, effort_field, effort != "none", effort) if effort else {}
    return meant | given


def thinking(model: LanguageModel, field: str, think: bool, effort: str | None) -> dict[str, object]:
    """Return the variables for what the request's `field` says of thinking.

    Raises:
        ApiError: 400, it asks for thinking; the template reads nothing of it, and is of no model that thinks unasked.
    """
    template = model.chat_template
    if think and not knows_thinking(template) and reasoning_format(template) is None:
        names = ", ".join((*SWITCHES, EFFORT))
        why = f"the chat template of {model.name} reads none of {names}."
        raise ApiError(400, f"{field} is not supported: {why}", param=field)
    return thinking_variables(think, effort)


def _tools_of(body: Mapping[str, Any]) -> tuple[Sequence[Tool], Sequence[Tool], ToolChoice]:
    """Return the functions that a request gives, none where it says that none is to be used; those of them that may be
    called; and how it chooses.

    Raises:
        ApiError: 400, it asks for a call and has no tools, or names none; as from `as_function`.
        MissingExtraError: it allows some of them, and llguidance is not installed.
    """
    tools, wanted = body.get("tools") or (), body.get("tool_choice", "auto")
    allowed: list[str] | None = None
    if isinstance(wanted, Mapping):
        kind = wanted["type"]
        need(wanted, "tool_choice", kind)
        if kind == "allowed_tools":
            allowed = [_name_of(tool, i) for i, tool in enumerate(wanted[kind]["tools"])]
            wanted = wanted[kind]["mode"]
        else:
            wanted = {"name": wanted[kind]["name"]}
    if not tools and (allowed or wanted not in ("auto", "none")):
        raise ApiError(400, "tool_choice asks for a call, but there are no tools.", param="tool_choice")
    if wanted == "none":
        return (), (), wanted
    functions = [as_function(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    return functions, functions if allowed is None else _named(functions, allowed), wanted


def _name_of(tool: Mapping[str, Any], index: int) -> str:
    need(tool, f"tool_choice.allowed_tools.tools[{index}]", tool["type"])
    return str(tool[tool["type"]]["name"])


def _named(functions: Sequence[Tool], names: Sequence[str]) -> list[Tool]:
    require("llguidance", "structured", "tool_choice.allowed_tools")  # nothing else keeps a call from the others
    known = [function["function"]["name"] for function in functions]
    if unknown := [name for name in names if name not in known]:
        text = f"tool_choice allows the tool {unknown[0]!r}; there are: {', '.join(known)}."
        raise ApiError(400, text, param="tool_choice")
    return [function for function in functions if function["function"]["name"] in names]


def chat_job(
    model: LanguageModel,
    body: Mapping[str, Any],
    messages: Sequence[Message],
    config: GenerationConfig,
    variables: Mapping[str, object],
) -> Job:
    """Return the answer to a conversation, which may call the tools that the request gives.

    Raises:
        ApiError, EdgeLMError: what the model or its template has against them.
    """
    tools, allowed, choice = _tools_of(body)
    parser: Callable[[], Parser] | None = None
    if tools:
        format_ = tool_format(model.chat_template, model.tokenizer)
        config = tool_settings(config, allowed, choice, format_, parallel=body.get("parallel_tool_calls", True))
        parser = partial(ToolCallParser, format_, tool_parameters(allowed))
        if names := custom_names(body["tools"]):
            parser = partial(CustomCalls, parser, names)
    prompt_ids, config, reasoning = model.chat_prompt(messages, config, tools, variables)
    return Job(prompt_ids=prompt_ids, config=config, parser=parser, reasoning=reasoning)


REFUSED: Mapping[str, str] = {
    "functions": "use tools.",
    "function_call": "use tool_choice.",
    "format": "use response_format.",  # Ollama's
    "audio": "these models write text.",
    "prediction": "it is not understood.",
    "web_search_options": "there is no network here.",
    "verbosity": "these models have no such setting.",
}

"""Messages, tools and formats of a chat request: what they may be, and what the engine gets of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgelm.constraint import Constraint
from edgelm.server.api_error import ApiError
from edgelm.server.schema import ANY_OBJECT, BOOLEAN, TEXT, Schema, choice, listing, record, whole

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel
    from edgelm.tools import ToolFormat

MAX_MESSAGES = 2048
MAX_TOOLS = 128
_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 64}

_PART = record({"type": TEXT, "text": TEXT}, required=("type",), open_ended=True)
_TOOL_CALL = record(
    {
        "id": TEXT,
        "type": choice("function"),
        "function": record({"name": _NAME, "arguments": TEXT}, required=("name",)),
    },
    required=("function",),
    ignored=("index",),
)
_MESSAGE = record(
    {
        "role": choice("system", "developer", "user", "assistant", "tool"),
        "content": {"anyOf": [TEXT, listing(_PART, most=MAX_MESSAGES)]},
        "tool_calls": listing(_TOOL_CALL, most=MAX_TOOLS),
        "tool_call_id": TEXT,
        "name": TEXT,
    },
    required=("role",),
    ignored=("refusal", "annotations", "reasoning_content", "audio"),
    refused={"function_call": "use tool_calls."},
)
_FUNCTION = record(
    {"name": _NAME, "description": TEXT, "parameters": ANY_OBJECT, "strict": BOOLEAN}, required=("name",)
)
_JSON_SCHEMA = record(
    {"name": TEXT, "description": TEXT, "schema": ANY_OBJECT, "strict": BOOLEAN}, required=("schema",)
)

CHAT: dict[str, Schema] = {
    "messages": listing(_MESSAGE, fewest=1, most=MAX_MESSAGES),
    "tools": listing(
        record({"type": choice("function"), "function": _FUNCTION}, required=("type", "function")), most=MAX_TOOLS
    ),
    "tool_choice": {
        "anyOf": [
            choice("none", "auto", "required"),
            record(
                {"type": choice("function"), "function": record({"name": TEXT}, required=("name",))},
                required=("type", "function"),
            ),
        ]
    },
    "parallel_tool_calls": BOOLEAN,
    "response_format": {
        "anyOf": [
            record({"type": choice("text", "json_object")}, required=("type",)),
            record({"type": choice("json_schema"), "json_schema": _JSON_SCHEMA}, required=("type", "json_schema")),
        ]
    },
    "max_tokens": whole(1),
    "max_completion_tokens": whole(1),
}


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation as a chat template takes it: contents are texts, `developer` is `system`.

    Raises:
        ApiError: 400, a part of a content is no text.
    """
    messages = []
    for i, given in enumerate(body["messages"]):
        message = {name: given[name] for name in ("role", "tool_calls", "tool_call_id", "name") if given.get(name)}
        message["content"] = _text_of(given.get("content"), f"messages[{i}].content")
        if message["content"] is None and not message.get("tool_calls"):
            raise ApiError(400, f"messages[{i}].content is missing.", param=f"messages[{i}].content")
        message["role"] = "system" if message["role"] == "developer" else message["role"]
        messages.append(message)
    return messages


def _text_of(content: str | list[dict[str, Any]] | None, place: str) -> str | None:
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        if part["type"] not in ("text", "input_text", "output_text") or part.get("text") is None:
            raise ApiError(
                400,
                f"{place}[{i}] is a part of type {part['type'][:40]!r}; these models read text alone, and no URL is "
                "ever fetched.",
                param=f"{place}[{i}]",
            )
    return "".join(part["text"] for part in content)


class ToolUse:
    """The tools of one request, as its answer may use them.

    Raises:
        ApiError: 400, tool_choice names a tool that is not there, or asks for one where there is none.
        ConfigError: the parameters of a tool are no schema that can be kept to.
    """

    def __init__(
        self, model: LanguageModel, tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any] | None
    ) -> None:
        names = [tool["function"]["name"] for tool in tools]
        wanted: Any = choice or "auto"
        if isinstance(wanted, Mapping):
            wanted = {"name": wanted["function"]["name"]}
            if wanted["name"] not in names:
                raise ApiError(
                    400, f"tool_choice names {wanted['name'][:64]!r}, which is none of tools.", param="tool_choice"
                )
        elif wanted == "required" and not tools:
            raise ApiError(400, "tool_choice is required, but there are no tools.", param="tool_choice")
        self.tools = list(tools) if wanted != "none" else []
        if self.tools:
            from edgelm.tools import tool_constraint, tool_format
        self.format: ToolFormat | None = tool_format(model) if self.tools else None
        self.constraint: Constraint | None = None
        if self.format is not None:
            self.constraint = tool_constraint(self.tools, wanted, self.format)


def constraint_of(response_format: Mapping[str, Any] | None, use: ToolUse) -> Constraint | None:
    """Return what the answer is held to: a format, or calls of tools.

    Raises:
        ApiError: 400, both are asked for.
        ConfigError: the schema is none that can be kept to.
    """
    kind = "text" if response_format is None else response_format["type"]
    if kind == "text":
        return use.constraint
    if use.tools:
        raise ApiError(
            400,
            "response_format and tools exclude each other here: give one of them, or tool_choice none.",
            param="response_format",
        )
    assert response_format is not None
    return (
        Constraint.json_object()
        if kind == "json_object"
        else Constraint.json_schema(response_format["json_schema"]["schema"])
    )


REFUSED: Mapping[str, str] = {
    "functions": "use tools.",
    "function_call": "use tool_choice.",
    "audio": "these models write text.",
    "prediction": "it is not understood.",
    "web_search_options": "there is no network here.",
    "verbosity": "these models have no such setting.",
}
MODALITIES: Schema = listing(choice("text"), most=1)

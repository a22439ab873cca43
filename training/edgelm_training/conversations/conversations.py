"""Conversations: what people and assistants said, read from the forms in which such data is passed around.

{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}        OpenAI
{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}            ShareGPT
{"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}                            Alpaca
{"prompt": "Hi", "completion": "Hello!"}                                                             a pair
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from edgelm.errors import DataError
from edgelm.text.chat_template import THOUGHT
from edgelm_training.texts.corpus import SEARCHED_FOR_OBJECTS, Progress, SourceFile, find_files, whole_span
from edgelm_training.texts.documents import read_records

ASSISTANT = "assistant"
_CALLING = "function_call"
# ShareGPT's words, and OpenAI's newer one, for the roles that chat templates know.
_ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "model": ASSISTANT,
    _CALLING: ASSISTANT,
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "developer": "system",
}
# Templates know roles of their own besides ("ipython", "document"), so that another one is wrong only if it looks like
# one of these.
_KNOWN_ROLES = ("system", "user", ASSISTANT, "tool", *_ROLES)
# OpenAI's and Axolotl's fields that say whether a message is learned -> their values.
_WEIGHTS = {"weight": "0 or 1", "train": "true or false", "training": "true or false"}
_DETAILS = ("train_detail", "training_detail")  # Axolotl's, of the parts of a message that are learned
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")  # beside the messages, as LLaVA and TRL have them


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation, in OpenAI's form, and where it stands.

    learned: the numbers of the assistant's messages that are to be learned. tools: what the chat template reads under
    this name. variables: what else it reads by name.
    """

    messages: tuple[Mapping[str, Any], ...]
    learned: frozenset[int]
    file: str
    line: int
    tools: Sequence[Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The file and the line."""
        return f"{self.file}:{self.line}"

    @cached_property
    def hash(self) -> int:
        """64 bits that depend on what is said alone."""
        # Parquet has bytes, which stand beside what is said in some data sets, and JSON has not.
        content = json.dumps([self.messages, self.tools], sort_keys=True, default=repr).encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def read_conversations(paths: Sequence[str | Path], *, progress: Progress = lambda *_: None) -> Iterator[Conversation]:
    """Yield the conversations of JSONL, JSON and Parquet files; each line may have another form.

    paths: files, folders and globs. progress: is told of the files.

    Raises:
        DataError: a path does not exist, or a line is broken or no conversation; the message begins with the file and
            the line.
        MissingExtraError: a file is Parquet, and pyarrow is not installed.
    """
    files = find_files(paths, searched=SEARCHED_FOR_OBJECTS)
    for number, file in enumerate(files):
        progress("Reading", number, len(files))
        for line, values in read_records(file, whole_span(file), columns=_FIELDS, telling=_FORMS):
            yield parse_conversation(values, file, line)
    progress("Reading", len(files), len(files))


def parse_conversation(values: Mapping[str, Any], file: SourceFile, line: int) -> Conversation:
    """Make a conversation of one line's object, by the fields that it has.

    Raises:
        DataError: it has none of the known forms, a value is of a wrong type, or there is nothing to learn.
    """
    values = {key: value for key, value in values.items() if value is not None}  # Parquet writes out what is missing
    parse = next((parse for field, parse in _FORMS.items() if field in values), None)
    try:
        if "chosen" in values and not {"messages", "conversations", "completion", "output"} & values.keys():
            raise DataError(
                "this is a preference, with an answer that is chosen; edgelm finetune --method dpo learns from those."
            )
        if parse is None:
            raise DataError(
                f"this is no conversation: its fields are {', '.join(map(repr, values)) or 'none'}; expected are "
                "messages, conversations, instruction and output, or prompt and completion."
            )
        if values.get("label") is False and "completion" in values:
            raise DataError(
                "label is false: the completion is one of KTO's bad answers. Leave such rows out; of the others, the "
                "good answers are learned."
            )
        refuse_media(values)
        messages, learned = parse(values)
        before = system_message(values, messages)
        messages, learned = [*before, *messages], {i + len(before) for i in learned}
        if not learned:
            roles = ", ".join(repr(role) for role in dict.fromkeys(message["role"] for message in messages))
            raise DataError(f"there is no message of the assistant to learn; the roles here are {roles:.60}.")
        tools, variables = parse_tools(values), parse_variables(values)
    except DataError as error:
        raise DataError(f"{file.name}:{line}: {error}") from error
    return Conversation(
        messages=tuple(messages),
        learned=frozenset(learned),
        file=file.name,
        line=line,
        tools=tools,
        variables=variables,
    )


def refuse_media(values: Mapping[str, Any]) -> None:
    """Refuse a line whose texts are about something that the model would not be shown.

    Raises:
        DataError: it has pictures, films or sound.
    """
    if field := next((name for name in _MEDIA if values.get(name)), None):
        raise DataError(
            f"{field} is {values[field]!r:.60}, and only text can be learned. Leave such lines out, or the field where "
            "the answers do not depend on it."
        )


_Parsed = tuple[list[dict[str, Any]], set[int]]


def _parse_messages(values: Mapping[str, Any]) -> _Parsed:
    return _weighed(parse_messages(values["messages"], "messages"), "messages")


def _parse_sharegpt(values: Mapping[str, Any]) -> _Parsed:
    return _weighed(parse_turns(values["conversations"], "conversations"), "conversations")


def parse_turns(turns: Any, field: str) -> list[dict[str, Any]]:
    """Return a list of messages, each in ShareGPT's form or in OpenAI's, in OpenAI's.

    Raises:
        DataError: it is no list, or one of them is no message.
    """
    if isinstance(turns, list):
        turns = [
            {"role": turn.get("from"), "content": turn.get("value")}
            | {key: turn.get(key) for key in (*_WEIGHTS, *_DETAILS)}
            if isinstance(turn, dict) and "from" in turn and "role" not in turn
            else turn
            for turn in turns
        ]
    return parse_messages(turns, field)


def _parse_alpaca(values: Mapping[str, Any]) -> _Parsed:
    messages = [*alpaca_prompt(values), {"role": ASSISTANT, "content": text_field(values, "output")}]
    return messages, _assistants(messages)


def alpaca_prompt(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages that Alpaca's `output` answers.

    Raises:
        DataError: a field is missing or of a wrong type.
    """
    question = text_field(values, "instruction")
    if values.get("input"):
        question = f"{question}\n\n{text_field(values, 'input')}"
    return [*_history(values.get("history") or []), {"role": "user", "content": question}]


def _history(turns: Any) -> Iterator[dict[str, Any]]:
    """Yield what LLaMA-Factory's Alpaca has before the instruction: a list of questions, each with its answer."""
    for i, turn in enumerate(turns if isinstance(turns, list) else [turns]):
        if not isinstance(turn, list) or [type(text) for text in turn] != [str, str]:
            raise DataError(f"history[{i}] is {turn!r:.60}; it must be a list of a question and its answer.")
        yield from ({"role": "user", "content": turn[0]}, {"role": ASSISTANT, "content": turn[1]})


def _parse_pair(values: Mapping[str, Any]) -> _Parsed:
    """Texts, or lists of messages; of these, what the assistant says in the prompt is not learned."""
    if isinstance(values["prompt"], list):
        prompt, _ = _weighed(parse_messages(values["prompt"], "prompt"), "prompt")
        completion, learned = _weighed(parse_messages(values.get("completion"), "completion"), "completion")
    else:
        prompt = [{"role": "user", "content": text_field(values, "prompt")}]
        completion, learned = [{"role": ASSISTANT, "content": text_field(values, "completion")}], {0}
    return prompt + completion, {i + len(prompt) for i in learned}


# The field that tells a form -> what reads it.
_FORMS: dict[str, Callable[[Mapping[str, Any]], _Parsed]] = {
    "messages": _parse_messages,
    "conversations": _parse_sharegpt,
    "instruction": _parse_alpaca,
    "prompt": _parse_pair,
}
# What may stand beside them, in any of the forms.
BESIDE = ("system", "tools", "functions", "chat_template_kwargs", *_MEDIA)
_FIELDS = frozenset({*_FORMS, "input", "output", "history", "completion", "chosen", "label", *BESIDE})


def _weighed(messages: list[dict[str, Any]], field: str) -> _Parsed:
    """Return messages without their weights, and which of the assistant's are to be learned by them."""
    learned = _assistants(messages)
    for i, message in enumerate(messages):
        for key, values in _WEIGHTS.items():
            weight = message.pop(key, 1)
            if weight not in (0, 1):
                raise DataError(f"the {key} of {field}[{i}] is {weight!r:.60}; it must be {values}.")
            if not weight:
                learned.discard(i)
    return messages, learned


def system_message(values: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the message that the field `system` is, where it has a text and the messages do not begin with one.

    Raises:
        DataError: it is no text.
    """
    if not values.get("system") or messages[0]["role"] == "system":
        return []
    return [{"role": "system", "content": text_field(values, "system")}]


def _assistants(messages: Sequence[Mapping[str, Any]]) -> set[int]:
    return {i for i, message in enumerate(messages) if message["role"] == ASSISTANT}


def parse_messages(values: Any, field: str) -> list[dict[str, Any]]:
    """Return a list of messages in OpenAI's form; `field` is what an error calls it.

    Raises:
        DataError: it is no list, or one of them is no message.
    """
    if not isinstance(values, list) or not values:
        raise DataError(f"{field} is {values!r:.60}; it must be a list of messages.")
    return [_message(value, f"{field}[{i}]") for i, value in enumerate(values)]


def _message(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place} is {value!r:.60}; a message is an object with role and content.")
    message = {key: _with_dates_as_texts(item) for key, item in value.items() if item is not None}
    if call := message.pop(_CALLING, None):  # as OpenAI had one call, before it had several
        message["tool_calls"] = message.get("tool_calls") or [call]
    if detail := next((key for key in _DETAILS if message.pop(key, None)), None):
        raise DataError(
            f"{place} has a {detail}, and a message is learned as a whole or not at all. Leave it out, or say so by "
            "train: true or false."
        )
    role = message.get("role")
    if not isinstance(role, str):
        raise DataError(f"the role of {place} is {role!r:.60}; it must be a text, such as 'user' or 'assistant'.")
    if role not in _KNOWN_ROLES and (near := difflib.get_close_matches(role.lower(), _KNOWN_ROLES, n=1, cutoff=0.8)):
        raise DataError(f"the role of {place} is {role!r:.60}. Did you mean {near[0]!r}?")
    for key in ("content", *THOUGHT):
        if isinstance(message.get(key), list):
            message[key] = "".join(_part(part, f"{place}.{key}[{i}]") for i, part in enumerate(message[key]))
        if key in THOUGHT and not isinstance(message.get(key, ""), str):
            raise DataError(f"the {key} of {place} is {message[key]!r:.60}; it must be a text.")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise DataError(f"the content of {place} is {content!r:.60}; it must be a text.")
    message |= {"role": _ROLES.get(role, role), "content": content or ""}
    if role == _CALLING and (calls := _written_calls(str(content))):
        message |= {"content": "", "tool_calls": calls}
    if "tool_calls" in message:
        message["tool_calls"] = _calls(message["tool_calls"], f"{place}.tool_calls")
    return message


def _with_dates_as_texts(value: Any) -> Any:
    """Return a value as JSON has it: messages in Parquet may say when they were sent, which no template can take."""
    if isinstance(value, dict):
        return {name: _with_dates_as_texts(field) for name, field in value.items()}
    if isinstance(value, list):
        return list(map(_with_dates_as_texts, value))
    return str(value) if isinstance(value, (date, time, timedelta)) else value


def _written_calls(content: str) -> list[Any] | None:
    """Return the calls that a turn of ShareGPT's is, as JSON; None: it is something else, and stays the text it is."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    return calls if all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls) else None


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    """Return calls in OpenAI's form; some data sets have the function of one by itself."""
    if not isinstance(calls, list):
        raise DataError(f"{place} is {calls!r:.60}; it must be a list of calls.")
    return [_call(call, f"{place}[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f'{place} is {call!r:.60}; a call is {{"function": {{"name": …, "arguments": …}}}}.')
    arguments = function.get("arguments") or {}
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise DataError(f"the arguments of {place} are {arguments!r:.60}; they must be an object, or one as JSON text.")
    return call if function is not call else {"type": "function", "function": function}


def _part(part: Any, place: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise DataError(f"{place} is {part!r:.60}; of the parts of a content, only text can be learned.")
    return str(part["text"])


def text_field(values: Mapping[str, Any], field: str) -> str:
    """Return the text of a field.

    Raises:
        DataError: it is missing or no text.
    """
    value = values.get(field)
    if not isinstance(value, str):
        found = f"is {value!r:.60}; it must be a text" if field in values else "is missing"
        raise DataError(f"the field {field!r} {found}.")
    return value


def parse_tools(values: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return what the field `tools` holds (before it there was `functions`).

    Raises:
        DataError: it is no list of objects.
    """
    value = _as_json("tools", values["tools"] if values.get("tools") is not None else values.get("functions"))
    if value is None:
        return None
    if not isinstance(value, list):
        raise DataError(f"tools is {value!r:.60}; it must be a list.")
    for i, tool in enumerate(value):
        if not isinstance(tool, dict):
            raise DataError(f"tools[{i}] is {tool!r:.60}; a definition is an object.")
    return value


def parse_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what TRL's field `chat_template_kwargs` gives to the chat template, such as `enable_thinking`.

    Raises:
        DataError: it is no object.
    """
    value = _as_json("chat_template_kwargs", values.get("chat_template_kwargs"))
    if value is not None and not isinstance(value, dict):
        raise DataError(f"chat_template_kwargs is {value!r:.60}; it must be an object.")
    return {name: given for name, given in (value or {}).items() if given is not None}


def _as_json(field: str, value: Any) -> Any:
    """Return a value that some data sets have as JSON text, because Parquet has no type for it."""
    if not isinstance(value, str):
        return value
    if not value:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field} is a text that is no JSON: {error}.") from error

"""Preferences: prompts, each with a better and a worse answer.

{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
{"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
{"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelm.errors import DataError
from edgelm_training.conversations.chats import Chats, encode_chats
from edgelm_training.conversations.conversations import (
    ASSISTANT,
    BESIDE,
    Conversation,
    parse_messages,
    parse_tools,
    parse_variables,
    refuse_media,
    system_message,
    text_field,
)
from edgelm_training.texts.corpus import SEARCHED_FOR_OBJECTS, SourceFile, find_files, whole_span
from edgelm_training.texts.documents import read_records

_SIDES = ("chosen", "rejected")


def load_preferences(
    paths: Sequence[str | Path], model: str | Path, *, validation_fraction: float = 0.0
) -> tuple[Chats, Chats]:
    """Read preferences and encode them for a model; return the train and validation splits.

    Conversation 2i of a split is the better one of pair i, 2i + 1 the worse. The rest is as of `chats.load_chats`.

    Raises:
        DataError: there is no pair, or one is broken; the message begins with its file and line.
        ChatTemplateError: the folder has no chat template, or a broken one.
        TokenizerError: the tokenizer cannot be read.
        MissingExtraError: a file is Parquet, and pyarrow is not installed.
    """
    pairs = [
        parse_preference(values, file, line)
        for file in find_files(paths, searched=SEARCHED_FOR_OBJECTS)
        for line, values in read_records(file, whole_span(file), columns=("prompt", *_SIDES, *BESIDE))
    ]
    if not pairs:
        raise DataError(f"There is no preference in {', '.join(map(str, paths))}.")
    return encode_chats(pairs, model, validation_fraction=validation_fraction)


def parse_preference(values: Mapping[str, Any], file: SourceFile, line: int) -> tuple[Conversation, Conversation]:
    """Make the better and the worse conversation of one line's object.

    Raises:
        DataError: a field is missing or of a wrong type, or the two answers do not answer the same.
    """
    try:
        missing = [side for side in _SIDES if values.get(side) is None]
        if missing:
            raise DataError(
                f"this is no preference: it has no {' and no '.join(missing)}; expected are prompt, chosen and "
                "rejected."
            )
        refuse_media(values)
        prompt = _prompt(values)
        answered = [_answered(values, side, prompt) for side in _SIDES]
        answered = [[*system_message(values, messages), *messages] for messages in answered]
        shared = _shared(*answered)
        learned = [_learned(messages, shared, side) for messages, side in zip(answered, _SIDES, strict=True)]
        tools, variables = parse_tools(values), parse_variables(values)
    except DataError as error:
        raise DataError(f"{file.name}:{line}: {error}") from error
    chosen, rejected = (
        Conversation(
            messages=tuple(messages), learned=numbers, file=file.name, line=line, tools=tools, variables=variables
        )
        for messages, numbers in zip(answered, learned, strict=True)
    )
    return chosen, rejected


def _prompt(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    prompt = values.get("prompt")
    if prompt is None:
        return []
    if isinstance(prompt, list):
        return parse_messages(prompt, "prompt")
    return [{"role": "user", "content": text_field(values, "prompt")}]


def _answered(values: Mapping[str, Any], side: str, prompt: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the whole conversation of a side; many data sets repeat the prompt there."""
    if isinstance(values[side], list):
        messages = parse_messages(values[side], side)
        return prompt + messages if messages[0]["role"] == ASSISTANT else messages
    if not prompt:
        raise DataError(f"there is no prompt, and {side} is no list of messages that has it.")
    return [*prompt, {"role": ASSISTANT, "content": text_field(values, side)}]


def _shared(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> int:
    """Count the messages at the beginning that both conversations have."""
    for shared, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one != other:
            return shared
    raise DataError("chosen and rejected say the same.")


def _learned(messages: list[dict[str, Any]], shared: int, side: str) -> frozenset[int]:
    learned = {i for i, message in enumerate(messages) if i >= shared and message["role"] == ASSISTANT}
    if not learned or not shared:
        raise DataError(f"{side} has no answer of the assistant to a prompt that chosen and rejected share.")
    return frozenset(learned)

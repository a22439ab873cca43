"""Preferences: prompts, each with a better and a worse answer.

{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
{"prompt": [{"role": "user", …}], "chosen": [{"role": "assistant", …}], "rejected": [{"role": "assistant", …}]}
{"chosen": [{"role": "user", …}, {"role": "assistant", …}], "rejected": [{"role": "user", …}, …]}
{"conversations": [{"from": "human", …}], "chosen": {"from": "gpt", …}, "rejected": {"from": "gpt", …}}    LLaMA-Factory
{"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"}                                the same
{"system": "Be brief.", "question": "Hi", "chosen": "Hello!", "rejected": "What?"}                         Orca
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
    alpaca_prompt,
    parse_tools,
    parse_turns,
    parse_variables,
    refuse_media,
    system_message,
    text_field,
)
from edgelm_training.texts.corpus import SEARCHED_FOR_OBJECTS, SourceFile, find_files, whole_span
from edgelm_training.texts.documents import read_records

_SIDES = ("chosen", "rejected")
_PROMPTS = ("prompt", "conversations", "question", "instruction")
_FIELDS = (*_PROMPTS, "input", "history", *_SIDES, *BESIDE)


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
        for line, values in read_records(file, whole_span(file), columns=_FIELDS)
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
                f"this is no preference: it has no {' and no '.join(missing)}; expected are chosen and rejected, "
                f"beside {', '.join(_PROMPTS[:-1])} or {_PROMPTS[-1]}."
            )
        refuse_media(values)
        answered = [_answered(values, side) for side in _SIDES]
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
    name = next((name for name in _PROMPTS if values.get(name) is not None), None)
    if name is None:
        return []
    if name == "instruction":
        return alpaca_prompt(values)
    if name == "conversations" or isinstance(values[name], list):
        return parse_turns(values[name], name)
    return [{"role": "user", "content": text_field(values, name)}]


def _answered(values: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    """Return the whole conversation of a side; many data sets repeat the prompt there."""
    said = [values[side]] if isinstance(values[side], dict) else values[side]
    if isinstance(said, list):
        messages = parse_turns(said, side)
        return [*_prompt(values), *messages] if messages[0]["role"] == ASSISTANT else messages
    prompt = _prompt(values)
    if not prompt:
        names = f"{', '.join(_PROMPTS[:-1])} or {_PROMPTS[-1]}"
        raise DataError(f"there is no prompt ({names}), and {side} is no list of messages that has it.")
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

"""From a conversation to token ids, in which no message spells a control token."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from edgelm.completion import Message
from edgelm.errors import ChatTemplateError
from edgelm.text.chat_template import ChatTemplate, check_conversation
from edgelm.text.control_guard import ControlGuard
from edgelm.text.tokenizer import Tokenizer


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, object] | None = None,
    marks: Mapping[str, str] | None = None,
) -> list[int]:
    """Render a conversation and encode it; only the template's own control tokens become control tokens.

    marks: texts in the messages, which nobody else knows, each with what is put in its place as if the template had
    written it.

    A conversation whose texts spell none gets the ids of transformers' `apply_chat_template`; one that ends with words
    of the assistant's, which an answer is to go on with, those with its `continue_final_message`.

    Raises:
        ChatTemplateError: as `ChatTemplate.render`, a value is not plain data, or the template does not write the last
            message, which is to be continued.
        TokenizerError: a text has half of a surrogate pair, which is no character.
    """
    continues = bool(words_to_continue(messages)) and add_generation_prompt  # checks the messages as they were given
    guard = ControlGuard(tokenizer)
    try:
        hidden: list[Any] = [guard.hide(message, f"messages[{i}]") for i, message in enumerate(messages)]
        hidden_variables = {name: guard.hide(value, name) for name, value in (variables or {}).items()}
    except RecursionError as error:
        raise ChatTemplateError("A message, a tool or a variable of the template is nested too deeply.") from error
    end = secrets.token_hex(16)
    if continues:  # a template that takes spaces off the content leaves those before this mark
        hidden[-1] = {**hidden[-1], "content": f"{hidden[-1]['content']}{end} "}
    rendered = template.render(
        hidden,
        add_generation_prompt=add_generation_prompt and not continues,
        variables=hidden_variables,
    )
    if continues:
        rendered = _before(end, rendered)
    for mark, text in (marks or {}).items():
        rendered = rendered.replace(mark, text)
    return tokenizer.encode_parts(guard.reveal(rendered))


def words_to_continue(messages: Sequence[Message]) -> str:
    """Return the words of the assistant's that a conversation ends with, which an answer goes on with; "": none.

    Raises:
        ChatTemplateError: as `check_conversation`.
    """
    check_conversation(messages)
    last = messages[-1]
    content = last.get("content")
    if last["role"] != "assistant" or not isinstance(content, str) or not content.strip() or last.get("tool_calls"):
        return ""
    return content


def _before(end: str, rendered: str) -> str:
    text, found, rest = rendered.rpartition(end)
    if not found:
        raise ChatTemplateError(
            "The conversation ends with the assistant's own words, which this model's template does not write, so that "
            "they cannot be continued. End it with a message of another role."
        )
    return text if rest.startswith(" ") else text.rstrip()

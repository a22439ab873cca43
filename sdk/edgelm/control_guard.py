"""ControlGuard: keeps what people say apart from the markup that a chat template puts around it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from edgelm.errors import ChatTemplateError
from edgelm.tokenizer import Tokenizer

# Keys of a message whose text is free. The others (role, type, name) are words that templates compare and build with.
_FREE_TEXT = ("content", "text")


class ControlGuard:
    """Hide the control tokens in the values given to one rendering, and tell them from the template's afterwards.

    Each literal in a value is replaced by a placeholder, so that the template can trim, join and compare around it.
    Whatever the template does with a value, cutting it into pieces included, makes no control token of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._hidden: list[str] = []
        # Digits alone stay as they are in JSON, in Python's repr, and in upper or lower case.
        self._mark = f"{secrets.randbits(64):020}"
        self._placeholder = re.compile(self._mark + "([0-9]{9})")

    def hide(self, value: object, place: str = "messages", *, free_text: bool = False) -> object:
        """Copy a value of plain data, with placeholders in its strings.

        Raises:
            ChatTemplateError: it holds something else than plain data, whose methods a template could call.
        """
        if isinstance(value, str):
            return self._hide_text(value, free_text)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            return {
                self.hide(key, place): self.hide(item, f"{place}[{key!r}]", free_text=key in _FREE_TEXT)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [self.hide(item, f"{place}[{i}]", free_text=free_text) for i, item in enumerate(value)]
        raise ChatTemplateError(f"{place} is a {type(value).__name__}; a conversation holds texts, numbers and lists.")

    def _hide_text(self, text: str, free_text: bool) -> str:
        parts = self._tokenizer.split(text)
        hidden = "".join(p if isinstance(p, str) else self._hide_one(self._tokenizer.token_text(p)) for p in parts)
        # A template that writes "<" before a text and ">" after it must not complete a control token with it. The
        # white space outside stays outside, for templates that trim.
        core = hidden.strip()
        if not core or not free_text or not self._could_join(core):
            return hidden
        start = hidden.index(core)
        return f"{hidden[:start]}{self._hide_one('')}{core}{self._hide_one('')}{hidden[start + len(core) :]}"

    def _could_join(self, core: str) -> bool:
        """Tell whether the text could be the end, the beginning or the middle of a control token's literal."""
        literals = self._tokenizer.control_tokens
        longest = max(map(len, literals), default=0)
        head, tail = core[:longest], core[-longest:]
        return any(
            core in literal
            or (literal[-1] in head and any(core.startswith(literal[i:]) for i in range(1, len(literal))))
            or (literal[0] in tail and any(core.endswith(literal[:i]) for i in range(1, len(literal))))
            for literal in literals
        )

    def _hide_one(self, literal: str) -> str:
        self._hidden.append(literal)
        return f"{self._mark}{len(self._hidden) - 1:09}"

    def reveal(self, rendered: str) -> list[str | int]:
        """Split a rendered conversation into ordinary text, hidden literals put back, and control token ids."""
        return [
            self._placeholder.sub(lambda match: self._hidden[int(match[1])], part) if isinstance(part, str) else part
            for part in self._tokenizer.split(rendered)
        ]

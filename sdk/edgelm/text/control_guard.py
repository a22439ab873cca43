"""ControlGuard: keeps what people say apart from the markup that a chat template puts around it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from edgelm.errors import ChatTemplateError
from edgelm.text.tokenizer import Tokenizer

# Keys of messages and tools below which text is free: the texts themselves, the names in a schema, or all that there
# is. The others (role, type, format) are words that templates compare and build with.
_FREE = {
    **dict.fromkeys(("content", "text", "name", "id", "tool_call_id", "description", "title"), "texts"),
    **dict.fromkeys(("required", "enum", "const", "default", "pattern"), "texts"),
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), "names"),
    "arguments": "all",
}


class ControlGuard:
    """Hide the control tokens in the values given to one rendering, and tell them from the template's afterwards.

    In the values, placeholders replace each literal of a control token, and each character that begins or ends one
    ("<", ">"). So a template can trim, join, split and change the case of a value, take characters out of it, and put
    its pieces in any order: the two ends of a control token never come from a value. Nor does a template that writes
    both ends itself complete one with a whole content or text; with a piece of one, or with a role, it does. A template
    finds words in a content, but not what has such a character in it (`"</think>" in content`), and counts more
    characters than there are. A template that decodes escapes of its own accord (`"\\x3c"`) can make what it likes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._hidden: list[str] = []
        self._number_of: dict[str, int] = {}
        literals = tokenizer.control_tokens
        # "&" too: `striptags` would read "&lt;" as "<".
        self._edges = {"&"}.union(*((literal[0], literal[-1]) for literal in literals if literal))
        self._folded_literals = [literal.casefold() for literal in literals]
        # Digits alone stay as they are in JSON, in Python's repr, and in upper or lower case.
        self._mark = f"{secrets.randbits(64):020}"
        self._placeholder = re.compile(self._mark + "([0-9]{9})")

    def hide(self, value: object, place: str, *, free: str = "") -> object:
        """Copy a value of plain data, with placeholders in its strings.

        free: what in it is free: "texts", the "names" of a mapping, "all", or nothing.

        Raises:
            ChatTemplateError: it holds something else than plain data, whose methods a template could call.
        """
        if isinstance(value, str):
            return self._hide_text(value, free in ("texts", "all"))
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping):
            hidden = {}
            for key, item in value.items():
                if free in ("names", "all"):
                    of_key, of_item = "texts", "all" if free == "all" else ""
                else:
                    of_key, of_item = "", _FREE.get(key, "")
                name = self.hide(key, place, free=of_key)
                hidden[name] = self.hide(item, f"{place}[{key!r}]", free=of_item)
            return hidden
        if isinstance(value, (list, tuple)):
            return [self.hide(item, f"{place}[{i}]", free=free) for i, item in enumerate(value)]
        raise ChatTemplateError(f"{place} is a {type(value).__name__}; a conversation holds texts, numbers and lists.")

    def _hide_text(self, text: str, free_text: bool) -> str:
        parts = self._tokenizer.split(text)
        hidden = "".join(
            self._hide_edges(part, free_text)
            if isinstance(part, str)
            else self._hide_one(self._tokenizer.token_text(part))
            for part in parts
        )
        # A template that writes "<" before a text and ">" after it must not complete a control token with it. The
        # white space outside stays outside, for templates that trim.
        core = hidden.strip()
        folded = core.casefold()
        if not core or not free_text or not any(folded in literal for literal in self._folded_literals):
            return hidden
        start = hidden.index(core)
        # One placeholder behind the text is enough: of a text that a control token ends with, the last character is
        # hidden already, and behind any other the rest would have to follow. So templates sort names as without it.
        return f"{hidden[:start]}{core}{self._hide_one('')}{hidden[start + len(core) :]}"

    def _hide_edges(self, text: str, free_text: bool) -> str:
        """Hide each character that could begin or end a control token, in whatever case a template writes it."""
        return text.translate(
            {
                ord(char): self._hide_one(char)
                for char in set(text)
                # A role or a type has to stay a word that templates can compare, even if a control token is a word.
                if (free_text or not char.isalnum()) and not self._edges.isdisjoint(_cases(char))
            }
        )

    def _hide_one(self, literal: str) -> str:
        # Equal texts stay equal, for templates that compare them.
        number = self._number_of.setdefault(literal, len(self._hidden))
        if number == len(self._hidden):
            self._hidden.append(literal)
        return f"{self._mark}{number:09}"

    def reveal(self, rendered: str) -> list[str | int]:
        """Split a rendered conversation into ordinary text, hidden literals put back, and control token ids."""
        return [
            self._placeholder.sub(self._revealed, part) if isinstance(part, str) else part
            for part in self._tokenizer.split(rendered)
        ]

    def _revealed(self, placeholder: re.Match[str]) -> str:
        number = int(placeholder[1])
        # A template that cuts a placeholder short may write other digits after it.
        return self._hidden[number] if number < len(self._hidden) else placeholder[0]


def _cases(char: str) -> str:
    upper, lower = char.upper(), char.lower()
    return char + upper + lower + char.title() + upper.lower() + lower.upper()

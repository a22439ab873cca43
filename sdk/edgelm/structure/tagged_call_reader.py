"""TaggedCallReader: one tool call in tags, which arrives character by character, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from edgelm.structure.python_call_reader import NAME
from edgelm.structure.reasoning_splitter import first_mark
from edgelm.structure.tagged_values import ValueForm, others_of, value_form
from edgelm.structure.tool_formats import Tags

_LONGEST_KEY = 1024


class TaggedCallReader:
    """Read one call, a name and arguments between tags; write the arguments as JSON.

    White space between tags is passed over, and so is what stands there besides, once a first argument has come. `name`
    is known from then on, or at the end; `is_closed` says whether the call ended. A text is handed on while it is
    written, any other value as a whole.

    end: a marker that ends the call too, where its own end is missing. tools: the schemas of the tools' parameters, by
    name, which say what is text.
    """

    def __init__(self, tags: Tags, end: str, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self.name: str | None = None
        self.text = ""
        self.arguments = ""  # as JSON text
        self.is_closed = False
        self._tags, self._tools = tags, tools
        self._ends = tuple(filter(None, (tags.end, end)))
        self._value_ends: tuple[str, ...] = (tags.value_end,)
        self._held = ""
        self._called = ""
        self._form = ValueForm()
        self._value = ""
        self._take: Callable[[], bool] = self._take_name

    def push(self, char: str) -> bool:
        """Take a character; or return False, where a call cannot have it."""
        self._held += char
        if self._take == self._take_value and self._held == char and char not in "\n<":
            self._held = ""
            self._say(char)
        elif not self._take():
            return False
        self.text += char
        return True

    # Each step takes what it can of the text that is held, and says whether a call can go on so.

    def _take_name(self) -> bool:
        self._held = core = self._held.lstrip()
        before, behind = self._tags.before_name, self._tags.behind_name.strip()
        if not core.startswith(before):
            return before.startswith(core)
        name = NAME.match(core, len(before))
        rest = core[name.end() :] if name else core[len(before) :]
        if not rest:
            return True
        if name is None or not rest.startswith(behind or ("<", " ", "\n")):
            return False
        self._called, self._held, self._take = name[0], rest.removeprefix(behind), self._take_key
        return self._take()

    def _take_key(self) -> bool:
        self._held = core = self._held.lstrip()
        before = self._tags.before_key
        if core.startswith(before):
            behind, _, opening = self._tags.behind_key.partition("\n")
            key, mark, rest = core.removeprefix(before).partition(behind)
            value = rest.lstrip() if opening else rest
            if mark and value.startswith(opening):
                self._held = value.removeprefix(opening)
                self._begin_value(key.strip())
                return not self._held or self._take()
            return opening.startswith(value) if mark else len(key) < _LONGEST_KEY
        if core.startswith(self._ends):
            if self.name is None and not self._tags.before_name and self._tools and self._called not in self._tools:
                return False  # it is only a word between two markers
            self._begin_arguments()
            self.arguments += "}"
            self.is_closed = True
        elif self.name is not None:
            self._held = core[first_mark(core, (before, *self._ends))[0] :]
        elif not any(mark.startswith(core) for mark in (before, *self._ends)):
            return False
        return True

    def _begin_arguments(self) -> None:
        self.arguments = self.arguments or "{"
        self.name = self._called

    def _begin_value(self, key: str) -> None:
        self._begin_arguments()
        self.arguments += f"{', ' if len(self.arguments) > 1 else ''}{json.dumps(key, ensure_ascii=False)}: "
        parameters = self._tools.get(self._called, {})
        properties = parameters.get("properties")
        others = others_of(parameters)
        schema = properties.get(key, others) if isinstance(properties, Mapping) else others
        self._form = value_form(schema, parameters)
        self.arguments += '"' if self._form.is_text else ""
        self._value = ""
        self._take = self._take_opening

    def _take_opening(self) -> bool:
        """Find out whether a value stands in lines of its own, as it should where its end does."""
        end = self._tags.value_end
        self._value_ends = (end,)
        if self._tags.has_lines and not self._held.startswith("\n"):
            self._value_ends = (end, end.removeprefix("\n"))
        elif self._tags.has_lines and not self._held.startswith(end):
            if end.startswith(self._held):
                return True
            self._held = self._held.removeprefix("\n")
        self._take = self._take_value
        return self._take()

    def _take_value(self) -> bool:
        place, is_whole = first_mark(self._held, self._value_ends)
        self._say(self._held[:place])
        self._held = self._held[place:]
        if is_whole:
            self._held = self._held.partition(self._value_ends[-1])[2]
            self.arguments += '"' if self._form.is_text else self._form.read(self._value)
            self._take = self._take_key
            return self._take()
        return True

    def _say(self, text: str) -> None:
        if self._form.is_text:
            self.arguments += json.dumps(text, ensure_ascii=False)[1:-1]
        else:
            self._value += text

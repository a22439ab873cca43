"""ToolCallReader: one tool call, a JSON object that arrives character by character."""

from __future__ import annotations

import json
import re

# How nearly every call begins; from here on its arguments can be handed on while they arrive.
_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')
_OUTSIDE_STRINGS = re.compile(r'[\s{}\[\]:,"0-9A-Za-z+.-]')


class ToolCallReader:
    """Read one JSON object as a call: an object with a name and arguments, in any order, or the arguments alone.

    name: the tool's, where the object is the arguments alone. As soon as it is known, `name` and `arguments` hold what
    came of them; `is_closed` says whether the object ended. One that ended without a name is no call.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.text = ""
        self.is_closed = False
        self._start = None if name is None else 0  # of the arguments
        self._end: int | None = None
        self._late_arguments = ""  # where they are known only with the whole object
        self._depth = 0
        self._depth_around = 0  # of the arguments
        self._in_string = self._is_escaped = False

    @property
    def arguments(self) -> str:
        """What came of the arguments, as JSON text."""
        return self._late_arguments if self._start is None else self.text[self._start : self._end]

    def push(self, char: str) -> bool:
        """Take a character; or return False, where JSON cannot have it."""
        if not self._in_string and not _OUTSIDE_STRINGS.match(char):
            return False
        if not self._in_string and char == "{":
            self._begin_arguments()
        self.text += char
        if self._in_string:
            self._in_string = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._start is not None and self._end is None and self._depth == self._depth_around:
                self._end = len(self.text)
            if self._depth <= 0:
                self._close()
        return True

    def _begin_arguments(self) -> None:
        if self._start is None and (head := _HEAD.fullmatch(self.text)):
            try:
                self.name = json.loads(head[1])
            except ValueError:  # an escape that JSON does not have
                return
            self._start, self._depth_around = len(self.text), self._depth

    def _close(self) -> None:
        self.is_closed = True
        if self._start is not None:
            return
        try:
            call = json.loads(self.text, strict=False)
        except (ValueError, RecursionError):
            return
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):  # some models quote the object
            self._late_arguments = arguments or "{}"
        else:
            self._late_arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        if isinstance(name, str):
            self.name = name

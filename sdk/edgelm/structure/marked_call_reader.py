"""MarkedCallReader: one tool call with strings between marks, which arrives character by character, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

from edgelm.structure.python_call_reader import NAME, read_literal
from edgelm.structure.reasoning_splitter import first_mark

_HEAD = "call:"
_LONGEST_KEY = 1024


class MarkedCallReader:
    """Read one call, `call:name{key:value,key:[value,value]}`, its strings between two marks; write it as JSON.

    Keys have no quotes. What has none in a value's place is a number, true, false or null, or what Python writes for
    them, and else a text. `name` is known from the first value on, or at the end; `is_closed` says whether it ended.
    A string is handed on while it is written.
    """

    def __init__(self, mark: str) -> None:
        self.name: str | None = None
        self.text = ""
        self.arguments = ""  # as JSON text
        self.is_closed = False
        self._mark = mark
        self._called = ""
        self._word = ""  # what came of a key, or of what stands without marks
        self._ends: list[str] = []  # of the brackets that are open
        self._is_key = self._is_over = False  # whether a key comes next; whether the value is over
        self._take: Callable[[str], bool] = self._take_name

    def push(self, char: str) -> bool:
        """Take a character; or return False, where a call cannot have it."""
        if not self._take(char):
            return False
        self.text += char
        return True

    def _take_name(self, char: str) -> bool:
        self._word = (self._word + char).lstrip()
        name = self._word.removeprefix(_HEAD)
        if name == self._word:
            return _HEAD.startswith(name)
        if char == "{" and NAME.fullmatch(name[:-1]):
            self._called, self._word = name[:-1], ""
            self._open("{")
            self._take = self._take_word
            return True
        return not name or bool(NAME.fullmatch(name))

    def _take_word(self, char: str) -> bool:
        """Take what stands between strings."""
        self._word += char
        word = self._word[:-1].strip() if char in ",:{}[]" else ""
        if self._word.endswith(self._mark):
            self._word = ""
            if not self._is_key and not self._is_over:
                self._begin_value()
                self.arguments += '"'
            self._take = self._take_string
        elif char in "{[" and not word and not self._is_key and not self._is_over:
            self._begin_value()
            self._open(char)
        elif char == ":" and self._is_key:
            self._begin_item()
            self.arguments += json.dumps(word.strip("\"'"), ensure_ascii=False) + ": "
            self._word, self._is_key = "", False
        elif char in ",]}":
            self._end_value(word)
            if char == ",":
                self._is_key, self._is_over = self._ends[-1] == "}", False
            else:
                self._close()
        return True

    def _take_string(self, char: str) -> bool:
        self._word += char
        place, is_whole = first_mark(self._word, (self._mark,))
        if self._is_key:  # what stands between the marks is the key
            if is_whole:
                self._word, self._take = self._word[:place], self._take_word
            return len(self._word) <= _LONGEST_KEY
        if self._is_over:  # a string behind a value: nothing of it is kept
            self._word = self._word[place:]
            if is_whole:
                self._word, self._take = "", self._take_word
            return True
        self.arguments += json.dumps(self._word[:place], ensure_ascii=False)[1:-1]
        self._word = self._word[place:]
        if is_whole:
            self.arguments += '"'
            self._word, self._is_over = "", True
            self._take = self._take_word
        return True

    def _open(self, bracket: str) -> None:
        self.arguments += bracket
        self._ends.append("}" if bracket == "{" else "]")
        self._word, self._is_key, self._is_over = "", bracket == "{", False

    def _close(self) -> None:
        self.arguments += self._ends.pop()
        self._is_key, self._is_over = False, True
        if not self._ends:
            self.name, self.is_closed = self._called, True

    def _begin_item(self) -> None:
        self.arguments += "" if self.arguments[-1] in "{[" else ", "

    def _begin_value(self) -> None:
        if self._ends[-1] == "]":
            self._begin_item()
        self.name = self._called

    def _end_value(self, word: str) -> None:
        """End what stands without marks; between two commas of a list, that is nothing."""
        self._word = ""
        if self._is_key or self._is_over or (not word and self._ends[-1] == "]"):
            return
        self._begin_value()
        self.arguments += read_literal(word) or json.dumps(word, ensure_ascii=False)

"""PythonCallReader: one tool call as Python writes it, which arrives character by character, as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

# The names of tools and of parameters that a call can be written with.
NAME = re.compile(r"""[^\s()\[\]{}<>'"=,;*]{1,256}""")
_LONGEST_WORD = 256
_DEEPEST = 64

_ENDS = {"[": ("[", "]", "]"), "(": ("[", ")", "]"), "{": ("{", "}", "}")}  # and how JSON begins and ends the same
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_WORD = re.compile(r"[0-9A-Za-z_.+-]")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_ESCAPES = {"\n": "", "\\": "\\", "'": "'", '"': '"', **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))}
_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(rf"x{_HEX}{{2}}|u{_HEX}{{4}}|U{_HEX}{{8}}|[0-7]{{3}}")
_ESCAPE_SO_FAR = re.compile(rf"x{_HEX}?|u{_HEX}{{0,3}}|U{_HEX}{{0,7}}|[0-7]{{1,2}}")


@dataclass
class _Bracket:
    end: str
    json_end: str
    has_keys: bool
    is_tuple: bool = False
    count: int = 0  # of the items begun
    commas: int = 0
    has_key: bool = False  # and waits for its value


class PythonCallReader:
    """Read one call, `name(parameter=value, **{"parameter": value})`; write its arguments as JSON.

    Values are literals: numbers, strings, True, False, None, lists, tuples and dicts, and JSON's true, false and null.
    Nothing is computed. In a string, a line break is what it is, and an escape that Python does not have stays as it
    stands. `name` is known from the first value on, or at the end; `is_closed` says whether the call ended. What breaks
    off behind that is handed on as it stands up to the bracket that ends it, so that the arguments are no JSON.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.text = ""
        self.arguments = ""  # as JSON text
        self.is_closed = False
        self._called = ""
        self._word = ""
        self._brackets: list[_Bracket] = []
        self._has_value = False  # behind the newest key
        self._quote = self._run = ""  # what ends a string, and what came of that
        self._is_raw = False
        self._escape: str | None = None  # what came behind a backslash
        self._take: Callable[[str], bool] = self._take_name

    def push(self, char: str) -> bool:
        """Take a character; or return False, where a call cannot have it."""
        if not self._take(char):
            if self.name is None:
                return False
            self.arguments += " " + self._word  # apart from a value before it
            self._word, self._quote, self._take = "", "", self._take_broken
            self._take_broken(char)
        self.text += char
        return True

    def _take_broken(self, char: str) -> bool:
        """Take what is no literal, as far as brackets and quotes tell."""
        self.arguments += char
        if self._quote:
            self._quote = "" if char == self._quote else self._quote
        elif char in "'\"":
            self._quote = char
        elif char in _ENDS:
            self._brackets.append(self._brackets[-1])
        elif char in ")]}":
            self._brackets.pop()
            self.is_closed = not self._brackets
        return True

    def _take_name(self, char: str) -> bool:
        if char == "(" and self._word:
            self._called, self._word = self._word, ""
            self._brackets.append(_Bracket(")", "}", has_keys=True))
            self.arguments = "{"
            self._take = self._take_parameter
            return True
        return self._grow(char)

    def _take_parameter(self, char: str) -> bool:
        name = self._word.rstrip()
        if char.isspace() and len(self._word) < _LONGEST_WORD:
            self._word += char if name else ""
            return True
        if char == ")" and not name:
            return self._close()
        if char == "{" and name == "**":
            self._word = ""
            self._brackets.append(_Bracket("}", "", has_keys=True, count=self._brackets[-1].count))
            self._take = self._take_value
            return True
        if char == "=" and NAME.fullmatch(name):
            self._word = ""
            self._begin_item()
            self.arguments += json.dumps(name, ensure_ascii=False) + ": "
            self._brackets[-1].has_key = True
            self._take = self._take_value
            return True
        if char == "*" and name in ("", "*"):
            self._word += char
            return True
        return self._grow(char)

    def _grow(self, char: str) -> bool:
        if not NAME.fullmatch(self._word + char):
            return False
        self._word += char
        return True

    def _take_value(self, char: str) -> bool:
        bracket = self._brackets[-1]
        if char.isspace():
            return True
        if char == bracket.end and not bracket.has_key:
            return self._close()
        if char in "'\"":
            self._open_string(char)
        elif char in _ENDS:
            if len(self._brackets) == _DEEPEST or (bracket.has_keys and not bracket.has_key):
                return False
            self._begin_value()
            start, end, json_end = _ENDS[char]
            self._brackets.append(_Bracket(end, json_end, has_keys=char == "{", is_tuple=char == "("))
            self.arguments += start
        elif _WORD.match(char):
            self._word, self._take = char, self._take_word
        else:
            return False
        return True

    def _take_word(self, char: str) -> bool:
        if _WORD.match(char):
            is_too_long = len(self._word) == _LONGEST_WORD
            self._word += "" if is_too_long else char
            return not is_too_long
        if char in "'\"" and self._word in ("r", "R"):
            self._word = ""
            self._open_string(char, is_raw=True)
            return True
        value = _WORDS.get(self._word) or _number(self._word)
        if value is None:
            return False
        self._word = ""
        is_key = self._begin_value()
        self.arguments += f'"{value}"' if is_key else value
        self._take = self._take_end
        return self._take_end(char)

    def _take_end(self, char: str) -> bool:
        """Take what follows a value or a key."""
        bracket = self._brackets[-1]
        if char.isspace():
            return True
        if bracket.has_key and not self._has_value:
            if char == ":":
                self.arguments += ": "
                self._take = self._take_value
            return char == ":"
        bracket.has_key = False
        if char == ",":
            bracket.commas += 1
            self._take = self._take_parameter if len(self._brackets) == 1 else self._take_value
            return True
        return char == bracket.end and self._close()

    def _close(self) -> bool:
        bracket = self._brackets[-1]
        if bracket.is_tuple and bracket.count == 1 and not bracket.commas:
            return False  # one value in parentheses is no tuple
        self._brackets.pop()
        self.arguments += bracket.json_end
        if not self._brackets:
            self.name, self.is_closed = self._called, True
            return True
        if not bracket.json_end:
            self._brackets[-1].count = bracket.count
        self._has_value, self._take = True, self._take_end
        return True

    def _begin_item(self) -> None:
        bracket = self._brackets[-1]
        self.arguments += ", " if bracket.count else ""
        bracket.count += 1

    def _begin_value(self) -> bool:
        """Begin with a value, or with a key where one must come; say whether it is one."""
        bracket = self._brackets[-1]
        is_key = bracket.has_keys and not bracket.has_key
        if is_key or not bracket.has_keys:
            self._begin_item()
        bracket.has_key = is_key or bracket.has_key
        self._has_value = not is_key
        self.name = self._called
        return is_key

    def _open_string(self, quote: str, *, is_raw: bool = False) -> None:
        self._begin_value()
        self.arguments += '"'
        self._quote, self._run, self._is_raw = quote, "", is_raw
        self._take = self._take_quote

    def _take_quote(self, char: str) -> bool:
        """Find out whether a string begins with one quote or three, or ends already."""
        if char == self._quote:
            self._run += char
            if len(self._run) == 2:
                self._quote, self._run = char * 3, ""
                self._take = self._take_string
            return True
        if self._run:
            return self._end_string() and self._take_end(char)
        self._take = self._take_string
        return self._take_string(char)

    def _take_string(self, char: str) -> bool:
        if self._escape is not None:
            return self._take_escape(char)
        if char == self._quote[0]:
            self._run += char
            return self._run != self._quote or self._end_string()
        self._say(self._run)
        self._run = ""
        if char == "\\":
            self._escape = ""
        else:
            self._say(char)
        return True

    def _take_escape(self, char: str) -> bool:
        escape = f"{self._escape}{char}"
        if self._is_raw:
            self._say("\\" + escape)
        elif escape in _ESCAPES:
            self._say(_ESCAPES[escape])
        elif _ESCAPE.fullmatch(escape):
            self._say(_character(escape))
        elif _ESCAPE_SO_FAR.fullmatch(escape):
            self._escape = escape
            return True
        else:
            said = escape[:-1]
            self._escape = None
            self._say(_character(said) if said.isdigit() else "\\" + said)
            if said:
                return self._take_string(char)
            self._say(char)
        self._escape = None
        return True

    def _end_string(self) -> bool:
        self.arguments += '"'
        self._quote = self._run = ""
        self._take = self._take_end
        return True

    def _say(self, text: str) -> None:
        # Half of a surrogate pair, as JSON's escapes may write them, stays an escape.
        is_whole = not any("\ud800" <= char <= "\udfff" for char in text)
        self.arguments += json.dumps(text, ensure_ascii=not is_whole)[1:-1]


def read_literal(text: str) -> str | None:
    """Return as JSON what a literal of Python's says; None: the text is none."""
    reader = PythonCallReader()
    if any(reader.is_closed or not reader.push(char) for char in f"f(value={text})") or not reader.is_closed:
        return None
    try:
        is_one = json.loads(reader.arguments).keys() == {"value"}
    except (ValueError, RecursionError):
        return None
    return reader.arguments[len('{"value": ') : -1] if is_one else None


def _character(escape: str) -> str:
    """Return what an escape by number stands for."""
    code = int(escape, 8) if escape.isdigit() else int(escape[1:], 16)
    return chr(code) if code < 0x110000 else "\\" + escape


def _number(word: str) -> str | None:
    """Write a number as JSON does; None: it is none."""
    if _JSON_NUMBER.fullmatch(word):
        return word
    for read in (lambda text: int(text, 0), int, float):
        try:
            return json.dumps(read(word), allow_nan=False)  # nor "inf" or "nan"
        except (ValueError, OverflowError):
            continue
    return None

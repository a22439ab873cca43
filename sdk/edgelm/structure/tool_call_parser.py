"""ToolCallParser: the tool calls in a growing answer, apart from what it says besides."""

from __future__ import annotations

import dataclasses
import json
import secrets
import string
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from edgelm.completion import Chunk, ToolCallDelta
from edgelm.structure.marked_call_reader import MarkedCallReader
from edgelm.structure.python_call_reader import NAME, PythonCallReader
from edgelm.structure.reasoning_splitter import first_mark
from edgelm.structure.tagged_call_reader import TaggedCallReader
from edgelm.structure.tool_call_reader import ToolCallReader
from edgelm.structure.tool_formats import ToolFormat

LONGEST_NAME = 256
_CALL_IN_FENCE = '{"name"'  # how a call begins, white space aside
_FENCE_END = "```"

_Reader = ToolCallReader | PythonCallReader | TaggedCallReader | MarkedCallReader


class ToolCallParser:
    """Take the text of one answer in pieces; separate what it says from the tools that it calls.

    Half of a marker is never shown. What has markers but is no call is text, markers and all.

    tools: the schemas of the parameters of the tools that there are, by name; an answer that is a JSON object without
        markers is a call only of one of them, and one in a block of Markdown where there are any.
    """

    def __init__(self, format: ToolFormat, tools: Mapping[str, Mapping[str, Any]] = MappingProxyType({})) -> None:
        self.count = 0  # of the calls so far
        self._format = format
        self._end = format.end
        self._starts = tuple(filter(None, (format.start, format.forgotten_start)))
        self._tools = tools
        self._held = ""
        self._has_said = False  # anything but white space
        self._in_calls = False
        self._is_bare = False  # in calls without a start marker
        self._region: str | None = None  # what was read since the start marker; None: a call of it is known
        self._reader: _Reader | None = None
        self._handed_on: int | None = None  # characters of the reader's arguments; None: its call is not known

    def push(self, text: str) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Take a piece; return what can be shown now, and the pieces of calls."""
        self._held += text
        content = ""
        deltas: list[ToolCallDelta] = []
        state = None
        while state != (state := (len(self._held), self._in_calls, self._reader)):
            if self._reader is not None:
                content += self._read_call(self._reader, deltas)
            elif self._in_calls:
                content += self._read_between_calls()
            else:
                content += self._read_text()
        return content, tuple(deltas)

    def flush(self) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Return what was held back, as the answer ended."""
        unfinished = self._reader.text if self._reader is not None else ""
        # After a call, the beginning of another that was cut off is nothing to show.
        return "" if self._in_calls and self.count else (self._region or "") + unfinished + self._held, ()

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its text taken apart; in the last one, "stop" is "tool_calls" after whole calls."""
        content, deltas = self.push(chunk.text)
        if chunk.finish_reason is None:
            return dataclasses.replace(chunk, text=content, tool_calls=deltas)
        rest, more = self.flush()
        reason = chunk.finish_reason
        if reason == "stop" and self.count and not self._is_cut_off:
            reason = "tool_calls"
        return dataclasses.replace(chunk, text=content + rest, tool_calls=deltas + more, finish_reason=reason)

    @property
    def _is_cut_off(self) -> bool:
        """Whether the last call is known and its arguments are not whole: the answer was stopped inside of them."""
        if self._reader is None or self._handed_on is None:
            return False
        try:
            json.loads(self._reader.arguments)
        except (ValueError, RecursionError):
            return True
        return False

    def _read_text(self) -> str:
        """Return the text up to a marker, or up to what may become one."""
        if not self._has_said and (self._may_be_bare() or self._may_be_fenced()):
            return ""
        start = self._format.start
        place, is_whole = first_mark(self._held, self._starts)
        shown = self._held[:place].rstrip()
        if is_whole:
            marker = start if self._held.startswith(start, place) else ""
            self._in_calls, self._is_bare, self._region = True, not marker, self._held[len(shown) : place] + marker
            self._held = self._held[place + len(marker) :]
        else:
            self._held = self._held[len(shown) :]
        self._has_said = self._has_said or bool(shown)
        return shown

    def _may_be_bare(self) -> bool:
        """Tell whether an answer may begin with a call without a marker; where it does, go on to the calls."""
        core, bare_start = self._held.lstrip(), self._format.bare_start
        if not bare_start or not core.startswith(bare_start):
            return bool(bare_start) and bare_start.startswith(core)
        self._held, self._in_calls, self._is_bare, self._region = core, True, True, ""
        return True

    def _may_be_fenced(self) -> bool:
        """Tell whether an answer may begin with a call in a block of Markdown; where it does, go on to the calls."""
        core, fence = self._held.lstrip(), self._format.fence
        if not fence or not self._tools or not core.startswith(fence):
            return bool(fence and self._tools) and fence.startswith(core)
        head = "".join(core.removeprefix(fence).split())
        if not head.startswith(_CALL_IN_FENCE):
            return _CALL_IN_FENCE.startswith(head)
        brace = self._held.index("{")
        self._region, self._held = self._held[:brace], self._held[brace:]
        self._in_calls, self._is_bare, self._end = True, True, _FENCE_END
        return True

    def _read_between_calls(self) -> str:
        """Move on to the next call, or out of the calls."""
        markers = [marker for marker in (self._end, self._format.start) if marker]
        self._pass_over(len(self._held) - len(self._held.lstrip()))
        if any(marker.startswith(self._held) for marker in markers):
            return ""  # also where nothing is there yet
        if self._end and self._held.startswith(self._end):
            self._pass_over(len(self._end))
            return self._leave_calls()
        if self._held.startswith(self._format.start):
            self._pass_over(len(self._format.start))
            return ""
        if self._format.name_end:
            return self._read_name()
        if self._held[0] == "{":
            self._reader = ToolCallReader()
        elif self._held[0] in "[],;":
            self._pass_over(1)
        elif self._format.tags:
            self._reader = TaggedCallReader(self._format.tags, self._format.end, self._tools)
        elif self._format.quote:
            self._reader = MarkedCallReader(self._format.quote)
        elif self._format.is_python and NAME.fullmatch(self._held[0]):
            self._reader = PythonCallReader()
        else:
            return self._leave_calls()
        return ""

    def _read_name(self) -> str:
        place, is_whole = first_mark(self._held, (self._format.name_end,))
        name, arguments = self._held[:place], self._held[place + len(self._format.name_end) :].lstrip()
        is_name = len(name) <= LONGEST_NAME and "\n" not in name
        if is_name and is_whole and arguments.startswith("{"):
            self._pass_over(len(self._held) - len(arguments))
            name = min((name.partition(stop)[0] for stop in self._format.name_stops), key=len, default=name)
            self._reader = ToolCallReader(name.strip())
            return ""
        return "" if is_name and not arguments else self._leave_calls()

    def _read_call(self, reader: _Reader, deltas: list[ToolCallDelta]) -> str:
        taken = 0
        while taken < len(self._held) and not reader.is_closed and reader.push(self._held[taken]):
            taken += 1
        is_over = reader.is_closed or taken < len(self._held)
        self._held = self._held[taken:]
        self._hand_on(reader, deltas)
        if not is_over:
            return ""
        is_call = self._handed_on is not None
        self._reader = self._handed_on = None
        if is_call and not self._format.ends_with_call:
            return ""
        return self._leave_calls("" if is_call else reader.text)

    def _hand_on(self, reader: _Reader, deltas: list[ToolCallDelta]) -> None:
        if not reader.name:
            return
        if self._is_bare and self._tools and reader.name not in self._tools:
            return
        if self._handed_on is None:
            id_ = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
            deltas.append(ToolCallDelta(index=self.count, id=id_, name=reader.name, arguments=reader.arguments))
            self.count += 1
            self._region = None
        elif len(reader.arguments) > self._handed_on:
            deltas.append(ToolCallDelta(index=self.count - 1, arguments=reader.arguments[self._handed_on :]))
        self._handed_on = len(reader.arguments)

    def _pass_over(self, count: int) -> None:
        if self._region is not None:
            self._region += self._held[:count]
        self._held = self._held[count:]

    def _leave_calls(self, text: str = "") -> str:
        """Return to the text; what was no call is shown."""
        shown = (self._region or "") + text
        self._in_calls, self._region, self._end = False, None, self._format.end
        self._has_said = self._has_said or bool(shown)
        return shown


# Mistral's chat templates take ids of nine letters and digits alone, and the others take any.
_ID_CHARACTERS = string.ascii_letters + string.digits

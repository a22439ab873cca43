"""ReasoningSplitter: what is thought in a growing answer, apart from what is answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgelm.completion import Chunk


class ReasoningSplitter:
    """Take the text of one answer in pieces; separate what is thought from what is answered.

    Where the pieces were cut changes nothing. Half of a mark is never shown, and white space around the marks is left
    out. An answer that begins with no mark, to a prompt that does not end with one, is answer alone, as it stands.

    start, end: the marks around the thinking. is_open: the prompt ends inside of it; has_begun: and says some of it.
    ends: texts that end it though they belong to the answer.
    """

    def __init__(self, *, start: str, end: str, is_open: bool, has_begun: bool, ends: Sequence[str]) -> None:
        self._start, self._end, self._is_open = start, end, is_open
        self._ends = (end, *ends)
        self._held = ""
        self._step = self._begin
        self._has_thought = has_begun  # anything but white space
        self._thought_tokens = 0
        self._undecided_tokens = 0  # of what may become a mark

    def push(self, text: str) -> tuple[str, str]:
        """Take a piece; return what is thought in it, and what is answered, as far as both can be shown now."""
        self._held += text
        thought = said = ""
        step = None
        while step != (step := self._step):
            more_thought, more_said = step()
            thought, said = thought + more_thought, said + more_said
        return thought, said

    def flush(self) -> tuple[str, str]:
        """Return what was held back, as the answer ended."""
        held, self._held = self._held, ""
        if self._step == self._think or (self._step == self._begin and self._is_open):
            return held.rstrip() if self._has_thought else held.strip(), ""
        return "", held if self._step == self._begin else ""

    def take(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its text taken apart; the last one's usage says how many tokens the thinking has.

        The marks around it count to it.
        """
        was_thinking = self._step == self._think
        thought, said = self.push(chunk.text)
        if chunk.finish_reason is not None:
            more_thought, more_said = self.flush()
            thought, said = thought + more_thought, said + more_said
        self._count(len(chunk.token_ids), was_thinking or bool(thought))
        usage = chunk.usage and dataclasses.replace(chunk.usage, reasoning_tokens=self._thought_tokens)
        return dataclasses.replace(chunk, reasoning=thought, text=said, usage=usage)

    def _count(self, tokens: int, has_thought: bool) -> None:
        self._undecided_tokens += tokens
        if has_thought or self._step == self._think:
            self._thought_tokens += self._undecided_tokens
        elif self._step in (self._begin, self._turn):
            return
        self._undecided_tokens = 0

    # Each step takes what it can of the text that is held, and may hand the rest to another one.

    def _begin(self) -> tuple[str, str]:
        core = self._held.lstrip()
        if core.startswith(self._start):
            self._held, self._step = core.removeprefix(self._start), self._think
        elif not self._start.startswith(core):
            self._step = self._think if self._is_open else self._say
        return "", ""

    def _think(self) -> tuple[str, str]:
        text = self._held if self._has_thought else self._held.lstrip()
        place, is_whole = first_mark(text, self._ends)
        thought = text[:place].rstrip()
        if is_whole:
            self._held, self._step = text[place:].removeprefix(self._end), self._turn
        else:
            self._held = text[len(thought) :]
        self._has_thought = self._has_thought or bool(thought)
        return thought, ""

    def _turn(self) -> tuple[str, str]:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._say
        return "", ""

    def _say(self) -> tuple[str, str]:
        said, self._held = self._held, ""
        return "", said


def first_mark(text: str, marks: Sequence[str]) -> tuple[int, bool]:
    """Return where the mark begins that is complete first, and True; or where half of one ends the text, and False."""
    found = [(place + len(mark), place) for mark in marks if (place := text.find(mark)) >= 0]
    if found:
        return min(found)[1], True
    begun = max(
        next(n for n in range(min(len(mark) - 1, len(text)), -1, -1) if text.endswith(mark[:n])) for mark in marks
    )
    return len(text) - begun, False

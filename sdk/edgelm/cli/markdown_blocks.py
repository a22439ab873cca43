"""MarkdownBlocks: cut a Markdown text that is still being written into blocks that no later text changes."""

from __future__ import annotations

import re

_INDENT = " \t"  # of Markdown: the ideographic spaces that begin a paragraph of Chinese are text
_FENCE = re.compile(r" {0,3}(`{3,}(?!.*`)|~{3,})")  # with more backticks behind them, three are code in a line


class MarkdownBlocks:
    """Take a text piece by piece, and give back each block when it is complete.

    A block ends at an empty line, unless that line is inside a code fence, or the next line is indented (and so goes on
    with a list item). `pending` is the block that is still open. The blocks and `pending`, joined, are the whole text.
    """

    def __init__(self) -> None:
        self._lines = ""  # the complete lines of the open block
        self._rest = ""  # the line that has no end yet
        self._fence = ""  # what closes the code that the open block ends in
        self._after_empty_line = False

    @property
    def pending(self) -> str:
        """The block that is still open."""
        return self._lines + self._rest

    def push(self, text: str) -> list[str]:
        """Add a piece of text, and return the blocks that it completes."""
        *lines, self._rest = (self._rest + text).split("\n")
        blocks = []
        for line in lines:
            begins_block = self._after_empty_line and not self._fence and bool(line) and line[0] not in _INDENT
            if begins_block:
                blocks.append(self._lines)
                self._lines = ""
            self._lines += f"{line}\n"
            self._after_empty_line = not line.strip(_INDENT)
            self._follow_fence(line)
        return blocks

    def _follow_fence(self, line: str) -> None:
        if self._fence:
            closing = line.strip()
            if closing.startswith(self._fence) and not closing.strip(self._fence[0]):
                self._fence = ""
        elif match := _FENCE.match(line):
            self._fence = match[1]

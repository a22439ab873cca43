"""The page of `--help`: what stands beside an example goes below it where a terminal is too narrow for both."""

from __future__ import annotations

import re
import shutil

import click

_INDENT = "    "
# An example and what it does, at least two spaces apart.
_BESIDE = re.compile(r"^( *)(\S.*\S) {2,}(\S.*)$", re.MULTILINE)


class _Formatter(click.HelpFormatter):
    """Fold whole lists of examples, as one alone would look like another thing."""

    def write_text(self, text: str) -> None:
        """Write a text, of which click leaves the paragraphs that begin with \\b as they are."""
        width = shutil.get_terminal_size().columns - self.current_indent
        super().write_text("\n\n".join(_folded(paragraph, width) for paragraph in text.split("\n\n")))


class _Context(click.Context):
    formatter_class = _Formatter


def fold_examples(command: click.Command) -> None:
    """Let the `--help` of a command, and of those in it, fit a narrow terminal."""
    if command.context_class is click.Context:  # another package's command may have its own
        command.context_class = _Context
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        fold_examples(inner)


def _folded(paragraph: str, width: int) -> str:
    if not paragraph.startswith("\b\nExamples:") or all(len(line) <= width for line in paragraph.splitlines()):
        return paragraph
    return _BESIDE.sub(lambda found: f"{found[1]}{found[2]}\n{found[1]}{_INDENT}{found[3]}", paragraph)

"""What a model thinks before it answers: dim, on standard error, and only where somebody looks at that."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgelm.cli.output import is_terminal, printable

if TYPE_CHECKING:
    from edgelm.completion import Chunk

# Where a terminal has no dim text, or its user wants none, this says what it is.
LABEL = "Thinking: "


def show_thinking(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Print what is thought in the chunks as they pass, and an empty line behind it."""
    shown = is_terminal(sys.stderr)
    dim = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    is_thinking = False
    for chunk in chunks:
        if shown and chunk.reasoning:
            text = printable(chunk.reasoning)
            label = "" if is_thinking else LABEL
            click.echo(click.style(text, dim=True) if dim else label + text, err=True, nl=False)
            is_thinking = True
        if is_thinking and (chunk.text or chunk.finish_reason is not None):
            click.echo("\n", err=True)
            is_thinking = False
        yield chunk

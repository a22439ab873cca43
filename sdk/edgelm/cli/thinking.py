"""What a model thinks before it answers: the option that asks for it, and how it is shown.

Dim, on standard error, and only where somebody looks at that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from edgelm.cli.output import is_dumb, is_terminal, printable
from edgelm.errors import ConfigError

if TYPE_CHECKING:
    from edgelm.completion import Chunk
    from edgelm.language_model import LanguageModel

# Where a terminal has no dim text, or its user wants none, this says what it is.
LABEL = "Thinking: "

think_option = click.option(
    "--think/--no-think",
    default=None,
    help="Let the model think before it answers, or not.  [default: as its chat template has it]",
)


def think_variables(model: LanguageModel, think: bool | None) -> dict[str, object]:
    """Return the variables that tell a model's chat template to think, or not to; None: nothing is told.

    Raises:
        ConfigError: the template reads none of them.
    """
    # Imported here, so that --help does not need jinja2.
    from edgelm.text.thinking import SWITCHES, switches_thinking, thinking_variables

    if think is None:
        return {}
    if not switches_thinking(model.chat_template):
        raise ConfigError(
            f"{model.name} cannot be told whether to think: its chat template does not read {' or '.join(SWITCHES)}. "
            "Leave --think and --no-think out, or /set think null."
        )
    return thinking_variables(think)


def show_thinking(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Print what is thought in the chunks as they pass, and an empty line behind it."""
    shown = is_terminal(sys.stderr)
    dim = not os.environ.get("NO_COLOR") and not is_dumb()
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

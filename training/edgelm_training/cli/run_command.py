"""RunCommand: a command that a launcher such as torchrun starts in several processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import click

from edgelm.errors import EdgeLMError
from edgelm_training.runs.launcher import launched_place

# Launchers end all processes when one has failed, and the one that speaks may be the last to get there.
_WAIT_SECONDS = 20


class RunCommand(click.Command):
    """Let only the first process of each machine report an error that all have; the others end with the same code."""

    def make_context(self, *positional: Any, **named: Any) -> click.Context:
        """Read the command line."""
        with _said_once():
            return super().make_context(*positional, **named)

    def invoke(self, context: click.Context) -> Any:
        """Run the command."""
        with _said_once():
            return super().invoke(context)


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    try:
        yield
    except (click.ClickException, EdgeLMError) as error:
        _, _, local_rank = launched_place()
        if local_rank == 0:  # what is missing on one machine may be there on that of the main process
            raise
        time.sleep(_WAIT_SECONDS)
        raise SystemExit(error.exit_code if isinstance(error, click.ClickException) else 1) from None

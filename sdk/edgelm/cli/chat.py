"""`edgelm chat`: a conversation, in a terminal or line by line through a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.generation_options import complete_model, generation_options, threads_option
from edgelm.cli.output import clean_text, is_terminal, printable
from edgelm.cli.progress import status
from edgelm.extras import require
from edgelm.library import Library

if TYPE_CHECKING:
    from edgelm.chat_session import ChatSession
    from edgelm.generation_config import GenerationConfig


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--system", metavar="TEXT", help="Tell the model how to behave.")
@generation_options
@threads_option
def chat(model: str | None, system: str | None, threads: int | None, settings: dict[str, Any]) -> None:
    """Talk with a model.

    MODEL is a name from the library or a folder; without one, the package that was written last. In the terminal,
    /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves. Where input or output is not a terminal, each line
    of standard input is one turn, and each answer goes to standard output with an empty line between.

    \b
    Examples:
      edgelm chat
      edgelm chat smollm2-135m-instruct --system "Answer in one sentence."
      printf 'My name is Ada.\\nWhat is my name?\\n' | edgelm chat package/
    """
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if interactive:
        require("prompt_toolkit", "chat", "The chat in a terminal")
        require("rich", "chat", "The chat in a terminal")
    name = model or Library().latest()
    with status(f"Loading {name}"):
        # Imported here, so that --help needs neither numpy nor ONNX Runtime.
        from edgelm.chat_session import ChatSession
        from edgelm.language_model import load
        from edgelm.session import SessionOptions

        loaded = load(name, SessionOptions(threads=threads))
        config = loaded.generation_config.replace(**settings)
        session = ChatSession(loaded, clean_text(system) if system is not None else None)
    if interactive:
        from edgelm.cli.conversation import Conversation
        from edgelm.cli.terminal import Terminal

        Conversation(loaded, session, config, Terminal()).run()
        return
    _answer_lines(session, config)


def _answer_lines(session: ChatSession, config: GenerationConfig) -> None:
    on_terminal = is_terminal(sys.stdout)
    turns = (line.strip() for line in sys.stdin or () if line.strip())
    for number, turn in enumerate(turns):
        if number:
            click.echo()
        for chunk in session.send(turn, config):
            click.echo(printable(chunk.text) if on_terminal else chunk.text, nl=False)
        click.echo()

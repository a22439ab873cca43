"""`edgelm chat`: a conversation, in a terminal or line by line through a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.adapter_options import adapters_option, with_adapters
from edgelm.cli.cache import complete_session
from edgelm.cli.generation_options import complete_model, generation_options, runtime_options
from edgelm.cli.output import clean_text, is_terminal, piped_lines, printable
from edgelm.cli.progress import status
from edgelm.cli.thinking import show_thinking, think_option, think_variables
from edgelm.errors import ConfigError, ModelNotFoundError, PackageError
from edgelm.extras import require
from edgelm.library.library import Library
from edgelm.package.manifest import Manifest
from edgelm.saved_session import SavedSession, SavedSessions

if TYPE_CHECKING:
    from edgelm.chat_session import ChatSession
    from edgelm.generation_config import GenerationConfig
    from edgelm.language_model import LanguageModel
    from edgelm.runtime.session_options import SessionOptions


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--system", metavar="TEXT", help="Tell the model how to behave.")
@click.option(
    "--resume",
    metavar="[NAME]",
    is_flag=False,
    flag_value="",
    shell_complete=complete_session,
    help="Go on with the conversation that was kept last, or one by its name.",
)
@click.option("--keep-cache", is_flag=True, help="Keep what was computed too: tens of megabytes a conversation.")
@think_option
@generation_options
@adapters_option
@runtime_options
def chat(
    model: str | None,
    system: str | None,
    resume: str | None,
    keep_cache: bool,
    think: bool | None,
    adapters: tuple[tuple[str | None, Path], ...],
    runtime: SessionOptions,
    settings: dict[str, Any],
) -> None:
    """Talk with a model.

    MODEL is a name from the library or a folder; without one, the package that was written last. In the terminal,
    /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves, and the conversation is kept after each answer
    (`edgelm cache` lists and deletes them). Where input or output is not a terminal, each line of standard input is one
    turn, also one that begins with /, each answer goes to standard output with an empty line between, and only a
    resumed conversation is kept. Of a conversation that outgrows the model's context, the model reads the system
    message and the newest part. Without options for it, words are chosen as the model's author recommends; where
    nothing is recommended, always the likeliest one.

    The first adapter answers, until `/set adapter` names another, or null for the model alone.

    \b
    Examples:
      edgelm chat
      edgelm chat --resume
      edgelm chat smollm2-135m-instruct --system "Answer in one sentence."
      printf 'My name is Ada.\\nWhat is my name?\\n' | edgelm chat package/
    """
    interactive = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    if interactive:
        require("prompt_toolkit", "chat", "The chat in a terminal")
        require("rich", "chat", "The chat in a terminal")
    resumed = None if resume is None else _session_named(resume)
    name = model or (Library().latest() if resumed is None else _model_of(resumed))

    def load_model(name: str) -> LanguageModel:
        with status(f"Loading {name}"):
            # Imported here, so that --help needs neither numpy nor ONNX Runtime.
            from edgelm.loading import load

            return load(name, runtime)

    loaded = with_adapters(load_model(name), adapters)
    if loaded.config.encoder is None:  # with one, the context holds a single answer
        settings.setdefault("context_shift", 0)  # somebody is talking: better to forget the beginning than to stop
    config = loaded.generation_config.replace(**settings)  # refuses a setting before the first question
    variables = think_variables(loaded, think)
    from edgelm.chat_session import ChatSession
    from edgelm.cli.kept_session import KeptSession

    kept = KeptSession(with_cache=keep_cache)
    session = ChatSession(loaded) if resumed is None else kept.resume(resumed.name, loaded)
    if system is not None:
        session.system = clean_text(system)
    if interactive:
        from edgelm.cli.conversation import Conversation
        from edgelm.cli.terminal import Terminal

        Conversation(session, settings, Terminal(), load_model, kept, think, name).run()
        return
    for _ in _answer_lines(session, config, variables):
        remark = None if resumed is None else kept.keep(session)
        if remark is not None:
            click.echo(remark, err=True)
    if resumed is not None:
        kept.finish(session)


def _session_named(name: str) -> SavedSession:
    """Find a saved session; an empty name is that of the last one."""
    sessions = SavedSessions()
    if name:
        return sessions.describe(name)
    found = sessions.names()
    if not found:
        raise ConfigError("No conversation is kept yet. Begin one: edgelm chat")
    return sessions.describe(found[0])


def _model_of(session: SavedSession) -> str:
    """Name the model that held a session: the very package, whatever its name in the library is, or one of its name."""
    if session.problem is not None:
        raise PackageError(session.problem)
    library = Library()
    for name in sorted(library.packages(), key=lambda name: name != session.model):
        with contextlib.suppress(PackageError):  # a broken one must not hide the others
            if Manifest.load(library.package_path(name)).fingerprint == session.fingerprint:
                return name
    if not library.has_package(session.model):
        raise ModelNotFoundError(
            f"The conversation {session.name!r} was held with {session.model!r}, which is not in the library. "
            f"Name a model: edgelm chat MODEL --resume {session.name}"
        )
    return session.model


def _answer_lines(
    session: ChatSession, config: GenerationConfig, template_variables: dict[str, object]
) -> Iterator[None]:
    """Answer each line of standard input, and yield after each."""
    on_terminal = is_terminal(sys.stdout)
    turns = (line.strip() for line in piped_lines() if line.strip())
    for number, turn in enumerate(turns):
        if number:
            click.echo()
        answer = session.send(turn, config, template_variables=template_variables)
        for chunk in show_thinking(answer):
            click.echo(printable(chunk.text) if on_terminal else chunk.text, nl=False)
        click.echo()
        yield

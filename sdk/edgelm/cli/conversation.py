"""Conversation: the loop of the chat in a terminal; what is typed goes to the model or to a slash command."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from edgelm.chat_session import ChatSession
from edgelm.cli.chat_commands import COMMANDS, run_command
from edgelm.cli.output import timing_line
from edgelm.completion import Chunk
from edgelm.errors import EdgeLMError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel

# From this share of the context on, each answer comes with a warning.
_NEARLY_FULL = 0.9


class Screen(Protocol):
    """What a conversation is held on."""

    def ask(self, commands: dict[str, str]) -> str:
        """Read what the user says; `commands` are completed. EOFError leaves, KeyboardInterrupt asks again."""

    def show(self, texts: Iterator[str]) -> None:
        """Show an answer as it comes."""

    def note(self, text: str) -> None:
        """Show a remark that is no part of an answer."""

    def warn(self, text: str) -> None:
        """Show what went wrong."""


class Conversation:
    """One chat: the model, the session, the settings, and the screen it is held on."""

    def __init__(self, model: LanguageModel, session: ChatSession, config: GenerationConfig, screen: Screen) -> None:
        self.model = model
        self.session = session
        self.config = config
        self.screen = screen
        self.last: Chunk | None = None  # of the last answer: its usage, timings and reason
        self.is_over = False

    def run(self) -> None:
        """Ask and answer until the user leaves."""
        self.screen.note(
            f"{self.model.name} · {self.model.manifest.precision} · {self.model.context_length} tokens of context · "
            "/help shows what you can type"
        )
        commands = {name: command.help for name, command in COMMANDS.items()}
        while not self.is_over:
            try:
                text = self.screen.ask(commands)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            try:
                if text.startswith("/"):
                    run_command(self, text)
                elif text.strip():
                    self._say(text.strip())
            except EdgeLMError as error:
                self.screen.warn(f"error: {error}")
            except KeyboardInterrupt:
                self.screen.warn("The answer was broken off.")

    def _say(self, text: str) -> None:
        self.answer(lambda cancel: self.session.send(text, self.config, cancel=cancel))

    def answer(self, ask: Callable[[threading.Event], Iterator[Chunk]]) -> None:
        """Show an answer as it comes; Ctrl-C stops it, and what was said stays in the conversation."""
        with _cancelled_by_interrupt() as cancel:
            self.screen.show(self._texts(ask(cancel)))
        last = self.last
        if last is None or last.usage is None or last.timings is None or last.finish_reason is None:
            return
        self.screen.note(timing_line(last.usage, last.timings, last.finish_reason))
        used, limit = self.session.context_used, self.model.context_length
        if used >= _NEARLY_FULL * limit:
            self.screen.warn(f"{used} of {limit} tokens of context are used: /clear starts a new conversation.")
        elif last.finish_reason == "length":
            self.screen.warn("The answer was cut off: /set max_new_tokens N allows longer ones.")

    def _texts(self, chunks: Iterator[Chunk]) -> Iterator[str]:
        for chunk in chunks:
            self.last = chunk
            yield chunk.text


@contextlib.contextmanager
def _cancelled_by_interrupt() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets: the running step ends in order. A second Ctrl-C breaks it off at once."""
    cancel = threading.Event()

    def interrupt(_signal: int, _frame: object) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)

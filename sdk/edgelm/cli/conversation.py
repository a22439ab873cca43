"""Conversation: the loop of the chat in a terminal; what is typed goes to the model or to a slash command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from edgelm.chat_session import ChatSession
from edgelm.cli.attachment import Attachment, message_with
from edgelm.cli.chat_commands import Suggestion, run_command, suggestions
from edgelm.cli.interrupts import Interrupts
from edgelm.cli.kept_session import KeptSession
from edgelm.cli.output import timing_line
from edgelm.cli.thinking import think_variables
from edgelm.completion import Chunk, Message
from edgelm.counted import counted
from edgelm.errors import ChatTemplateError, EdgeLMError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.shell_word import shell_word

# From this share of the context on, each answer comes with a warning.
_NEARLY_FULL = 0.9
QUOTES = '"""'


@dataclass(frozen=True)
class Thought:
    """A piece of what the model thinks before it answers."""

    text: str


class Screen(Protocol):
    """What a conversation is held on."""

    def ask(self, suggest: Callable[[str], Iterable[Suggestion]], status: str) -> str:
        """Read what the user says; `suggest` completes it. EOFError leaves, KeyboardInterrupt asks again."""

    def show(self, texts: Iterator[str | Thought], status: Callable[[], str]) -> None:
        """Show an answer as it comes, what is thought before it, and how it goes."""

    def edit(self, text: str) -> str | None:
        """Let the user change a text; None: it was left as it is. EdgeLMError: there is no editor."""

    def note(self, text: str) -> None:
        """Show a remark that is no part of an answer."""

    def warn(self, text: str) -> None:
        """Show what went wrong."""


@dataclass(eq=False)
class Conversation:
    """One chat: the model, the session, the settings that differ from the model's own, and the screen it is held on.

    load: opens another model by its name. think: what the model is told of thinking; None: nothing. opened: the name or
    path by which the model was opened; None: its own name.
    """

    session: ChatSession
    settings: dict[str, Any]
    screen: Screen
    load: Callable[[str], LanguageModel]
    kept: KeptSession
    think: bool | None = None
    opened: str | None = None
    attachments: list[Attachment] = field(default_factory=list)  # files that go with the next message
    last: Chunk | None = None  # of the last answer: its usage, timings and reason
    speed: float = 0.0  # tokens a second of this model's last answer; 0: there is none
    is_over: bool = False
    _is_reading: bool = False  # what was said, before the first token of the answer
    _interrupts: Interrupts = field(default_factory=Interrupts)

    @property
    def model(self) -> LanguageModel:
        """The model that answers."""
        return self.session.model

    def run(self) -> None:
        """Ask and answer until the user leaves."""
        with self._interrupts:
            self.screen.note(
                f"{self.model.name} · {self.model.manifest.precision} · {self.model.context_length} tokens of context "
                "· /help lists commands"
            )
            if self.session.messages:
                self.show_last_turn()
            while not self.is_over:
                try:
                    text = self.screen.ask(suggestions, self.status())
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    break
                self._react(text)
            self.leave()
            if self.kept.name is not None:
                but_for = "" if self.kept.is_whole else ", but for what was said last"
                # What is saved says the model's own name, by which no path is found again.
                model = "" if self.opened in (None, self.model.name) else f"{shell_word(self.opened)} "
                self.screen.note(f"Kept as {self.kept.name}{but_for}: edgelm chat {model}--resume {self.kept.name}")

    def _react(self, text: str) -> None:
        try:
            if text.startswith("/"):
                with self._interrupts.breaking():
                    run_command(self, text)
            elif said := unquoted(text):
                self._say(said)
        except (EdgeLMError, OSError) as error:
            self.screen.warn(f"error: {error}")
        except KeyboardInterrupt:
            self.screen.warn("It was broken off.")

    def _say(self, text: str) -> None:
        message, before = message_with(self.attachments, text), len(self.session.messages)
        try:
            self.answer(partial(self.session.send, message))
        finally:
            if len(self.session.messages) > before:
                self.attachments.clear()

    def config(self) -> GenerationConfig:
        """Return the model's own settings, with what the user has changed."""
        return self.model.generation_config.replace(**self.settings)

    def template_variables(self) -> dict[str, object]:
        """Return what the model's chat template is told."""
        return think_variables(self.model, self.think)

    def answer(self, ask: Callable[..., Generator[Chunk, None, None]]) -> None:
        """Show an answer as it comes; Ctrl-C stops it, and what was said stays in the conversation.

        ask: a turn of the session, which gets its config, what cancels it, and the template's variables.
        """
        self.last, self._is_reading = None, True
        try:
            with self._interrupts.stopping() as cancel:
                chunks = ask(self.config(), cancel=cancel, template_variables=self.template_variables())
                with contextlib.closing(chunks):
                    self.screen.show(self._texts(chunks), self.status)
        finally:
            self._is_reading = False
            self.keep()
        last = self.last
        if last is None or last.usage is None or last.timings is None or last.finish_reason is None:
            return
        self.screen.note(timing_line(last.usage, last.timings, last.finish_reason))
        used, limit = self.session.context_used, self.model.context_length
        if self.config().context_shift is not None:
            if (tokens := self.conversation_tokens()) > limit:
                self.screen.note(f"The model reads the newest part of this conversation's {tokens} tokens.")
        elif used >= _NEARLY_FULL * limit:
            self.screen.warn(f"{used} of {limit} tokens of context are used: /clear starts a new conversation.")
            return
        if last.finish_reason == "length":
            self.screen.warn("The answer was cut off: /set max_new_tokens N allows longer ones.")

    def _texts(self, chunks: Iterator[Chunk]) -> Iterator[str | Thought]:
        tokens, began = 0, time.monotonic()
        for chunk in chunks:
            self._is_reading = False
            if not tokens:  # the first comes with the prompt, whose time is not the answer's
                began = time.monotonic()
            elif (seconds := time.monotonic() - began) > 0:
                self.speed = tokens / seconds
            tokens += len(chunk.token_ids)
            if chunk.timings is not None:
                self.speed = chunk.timings.decode_tokens_per_second
            self.last = chunk
            if chunk.reasoning:
                yield Thought(chunk.reasoning)
            yield chunk.text

    def status(self) -> str:
        """Describe the model, its speed, and the context that is used."""
        parts = [self.model.name]
        if self._is_reading:
            parts.append("reading …")
        elif self.speed:
            parts.append(f"{self.speed:.1f} tokens/s")
        parts.append(f"context {self.context_used()} of {self.model.context_length}")
        if self.attachments:
            parts.append(f"with {', '.join(attachment.name for attachment in self.attachments)}")
        return " · ".join(parts)

    def context_used(self) -> int:
        """Count the tokens of the conversation, also where the model has not read it yet."""
        if self.session.context_used or not self.session.messages:
            return self.session.context_used
        return self.conversation_tokens()

    def conversation_tokens(self) -> int:
        """Count the tokens of the conversation, whatever part of it the model reads."""
        system = [Message(role="system", content=self.session.system)] if self.session.system else []
        try:
            return len(self.model.encode_chat([*system, *self.session.messages], None, self.template_variables()))
        except ChatTemplateError:  # it will be said with the next answer
            return 0

    def show_last_turn(self) -> None:
        """Show the last turn of a conversation that the screen has not seen."""
        said: dict[str, str] = {}
        for turn in self.session.messages[-2:]:
            said[turn["role"]] = turn["content"] or ""
        self.screen.note(
            f"{counted(len(self.session.messages), 'message')} so far; the last of them:\n{said.get('user', '')}"
        )
        if "assistant" in said:
            self.screen.show(iter([said["assistant"]]), self.status)

    def keep(self) -> None:
        """Write the conversation to the disk; where that fails, say so once."""
        was_whole = self.kept.is_whole
        try:
            remark = self.kept.keep(self.session)
        except EdgeLMError as error:
            if was_whole:
                self.screen.warn(f"This conversation is not kept: {error}")
            return
        if remark is not None:
            self.screen.note(remark)

    def leave(self) -> None:
        """Finish the session on the disk, before another one begins or the chat ends."""
        try:
            self.kept.finish(self.session)
        except EdgeLMError as error:
            self.screen.warn(f"This conversation's keys and values are not kept: {error}")


def unquoted(text: str) -> str:
    """Return what is said: without the white space around it, or as it stands between triple quotes."""
    stripped = text.strip()
    if len(stripped) >= 2 * len(QUOTES) and stripped.startswith(QUOTES) and stripped.endswith(QUOTES):
        inner = stripped[len(QUOTES) : -len(QUOTES)]
        return inner.strip("\n") if inner.strip() else ""
    return stripped

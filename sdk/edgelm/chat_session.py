"""ChatSession: a conversation that computes each token once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgelm.completion import Chunk, Message
from edgelm.errors import ConfigError
from edgelm.generation_config import GenerationConfig

if TYPE_CHECKING:
    from edgelm.language_model import LanguageModel


class ChatSession:
    """Keep a conversation and its KV cache: a turn computes only what is new in it.

    One turn at a time; for several conversations at once, make several sessions.
    """

    def __init__(self, model: LanguageModel, system: str | None = None) -> None:
        self._model = model
        self._cache = model.session.new_cache()
        self._messages: list[Message] = []
        self.system = system

    @property
    def messages(self) -> list[Message]:
        """The turns so far, without the system message; a copy."""
        return [Message(role=turn["role"], content=turn["content"]) for turn in self._messages]

    @property
    def context_used(self) -> int:
        """How many tokens the conversation has in the model's context."""
        return self._cache.length

    def restore(self, messages: Sequence[Message]) -> None:
        """Replace the turns by others, such as those of a saved conversation."""
        for turn in messages:
            if turn.get("role") not in ("user", "assistant") or not isinstance(turn.get("content"), str):
                raise ConfigError(f"A turn has a role (user or assistant) and a text as content; this one is {turn!r}.")
        self._messages = [Message(role=turn["role"], content=turn["content"]) for turn in messages]

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self._messages = []
        self._cache = self._model.session.new_cache()

    def send(
        self, text: str, config: GenerationConfig | None = None, *, cancel: threading.Event | None = None
    ) -> Iterator[Chunk]:
        """Say something, and yield the answer in pieces.

        What was yielded becomes part of the conversation, also when the answer is cancelled or not read to its end. A
        turn that fails before its first chunk leaves the conversation as it was.

        Raises:
            ContextLengthError: the conversation does not fit the model's context any more.
        """
        return self._answer([*self._messages, Message(role="user", content=text)], config, cancel)

    def regenerate(
        self, config: GenerationConfig | None = None, *, cancel: threading.Event | None = None
    ) -> Iterator[Chunk]:
        """Answer the last question once more, in place of the last answer.

        Raises:
            ConfigError: nothing was asked yet.
        """
        turns = list(self._messages)
        while turns and turns[-1]["role"] != "user":
            turns.pop()
        if not turns:
            raise ConfigError("There is no question to answer again yet.")
        return self._answer(turns, config, cancel)

    def _answer(
        self, turns: list[Message], config: GenerationConfig | None, cancel: threading.Event | None
    ) -> Iterator[Chunk]:
        system = [Message(role="system", content=self.system)] if self.system else []
        chunks = self._model.stream_chat([*system, *turns], config, cancel=cancel, cache=self._cache)
        return self._record(turns, chunks)

    def _record(self, turns: list[Message], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        said: list[str] = []
        try:
            for chunk in chunks:
                said.append(chunk.text)
                yield chunk
        finally:
            if said:
                self._messages = [*turns, Message(role="assistant", content="".join(said))]

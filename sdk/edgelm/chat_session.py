"""ChatSession: a conversation that computes each token once."""

from __future__ import annotations

import inspect
import reprlib
import threading
import weakref
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from edgelm import saved_session
from edgelm.arguments import as_list, as_path, is_whole, of_class
from edgelm.completion import Chunk, Message
from edgelm.errors import ConfigError, EdgeLMError, PackageError
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel


class ChatSession:
    """Keep a conversation and its KV cache: a turn computes only what is new in it.

    One turn at a time: the next call of `send`, `regenerate`, `edit`, `restore` or `clear` ends an answer that was not
    read to its end. For several conversations at once, make several sessions.
    """

    def __init__(self, model: LanguageModel, system: str | None = None) -> None:
        self._model = of_class("model", model, LanguageModel, "which edgelm.load returns")
        self._cache = model.session.new_cache()
        self._messages: list[Message] = []
        # Weakly, as the answer refers to the session: a reference cycle would keep the model in memory until the
        # garbage collector runs.
        self._running: weakref.ref[Generator[Chunk, None, None]] | None = None
        self.system = system

    def __repr__(self) -> str:
        return f"<ChatSession with {self._model.name!r}: {len(self._messages)} messages>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: a copy would write into the same cache."""
        raise EdgeLMError(
            "A conversation is neither pickled nor copied by the module copy: both would write into one cache. Give "
            "another its turns, by ChatSession(model, system) and restore(messages); save() keeps it in a folder."
        )

    @property
    def model(self) -> LanguageModel:
        """The model that answers."""
        return self._model

    @property
    def system(self) -> str | None:
        """How the model is to behave: what stands before the turns; None for nothing.

        Raises:
            ConfigError: it is set to what is no text.
        """
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if not isinstance(text, str | None):
            raise ConfigError(f"system is {reprlib.repr(text)}; it must be a text, or None.")
        self._system = text

    @property
    def messages(self) -> list[Message]:
        """The turns so far, without the system message; a copy."""
        return [Message(role=turn["role"], content=turn["content"]) for turn in self._messages]

    @property
    def context_used(self) -> int:
        """How many tokens the conversation has in the model's context."""
        return self._cache.length

    def restore(self, messages: Sequence[Message | Mapping[str, Any]]) -> None:
        """Replace the turns by others, such as those of a saved conversation.

        Raises:
            ConfigError: there is no list, or a turn is no mapping with a role (user or assistant) and a text.
        """
        self._end_running()
        messages = as_list(messages, "restore takes a list of turns")
        for number, turn in enumerate(messages, 1):
            if (
                not isinstance(turn, Mapping)
                or turn.get("role") not in ("user", "assistant")
                or not isinstance(turn.get("content"), str)
            ):
                raise ConfigError(
                    f"Turn {number} is {reprlib.repr(turn)}; each has a role (user or assistant) and a text as content."
                )
        self._messages = [Message(role=turn["role"], content=turn["content"]) for turn in messages]

    def save(self, folder: str | Path, *, with_cache: bool = True) -> None:
        """Write the conversation and its KV cache to a folder, which appears whole or not at all; `load` reads it.

        An answer that was not read to its end ends here. Without its cache a session is small, and its next turn
        computes the conversation once more.

        Raises:
            ConfigError: the folder holds something else, or cannot be written.
        """
        self._end_running()
        saved_session.write(
            as_path(folder),
            model=self._model,
            system=self.system,
            messages=self._messages,
            cache=self._cache,
            with_cache=with_cache and self._model.config.encoder is None,  # an encoder rereads its source in one step
        )

    @classmethod
    def load(cls, model: LanguageModel, folder: str | Path, *, any_model: bool = False) -> ChatSession:
        """Go on with a saved conversation: its next turn computes only what is new.

        any_model: go on with the text, where another model held the conversation; its cache is of no use then.

        Raises:
            PackageError: the session belongs to another model, or is broken.
        """
        session = cls(model)
        session.system, messages, cache = saved_session.read(as_path(folder), model, any_model=any_model)
        try:
            session.restore(messages)
        except ConfigError as error:
            raise PackageError(f"The saved session {folder} is broken: {error}") from error
        session._cache = cache or session._cache
        return session

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self._end_running()
        self._messages = []
        self._cache = self._model.session.new_cache()

    def send(
        self,
        text: str,
        config: GenerationConfig | None = None,
        *,
        cancel: threading.Event | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Say something, and yield the answer in pieces.

        What was yielded becomes part of the conversation, also when the answer is cancelled or not read to its end. A
        turn that fails, or is broken off before its answer has any text, leaves the conversation as it was.

        config, cancel, template_variables: of this turn, as in LanguageModel.stream_chat.

        Raises:
            ConfigError: what is said is no text, or a variable is one that edgelm sets.
            ContextLengthError: the conversation does not fit the model's context any more.
        """
        self._end_running()
        turns = [*self._messages, Message(role="user", content=text)]
        return self._answer(turns, config, cancel, template_variables)

    def regenerate(
        self,
        config: GenerationConfig | None = None,
        *,
        cancel: threading.Event | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Answer the last question once more, in place of the last answer.

        Raises:
            ConfigError: nothing was asked yet.
        """
        self._end_running()
        turns = list(self._messages)
        while turns and turns[-1]["role"] != "user":
            turns.pop()
        if not turns:
            raise ConfigError("There is no question to answer again yet.")
        return self._answer(turns, config, cancel, template_variables)

    def edit(
        self,
        index: int,
        text: str,
        config: GenerationConfig | None = None,
        *,
        cancel: threading.Event | None = None,
        template_variables: Mapping[str, object] | None = None,
    ) -> Generator[Chunk, None, None]:
        """Say something else in place of the message at `index`, and yield the answer; what came after it goes.

        As with `send`, a turn without any answer leaves the conversation as it was.

        Raises:
            ConfigError: at `index` the user has said nothing, or what is said now is no text.
            ContextLengthError: the conversation does not fit the model's context.
        """
        self._end_running()
        if not is_whole(index) or not 0 <= index < len(self._messages) or self._messages[index]["role"] != "user":
            asked = [i for i, turn in enumerate(self._messages) if turn["role"] == "user"]
            raise ConfigError(f"The message at {index!r} is none of the user's; those are at {asked}.")
        turns = [*self._messages[:index], Message(role="user", content=text)]
        return self._answer(turns, config, cancel, template_variables)

    def _answer(
        self,
        turns: list[Message],
        config: GenerationConfig | None,
        cancel: threading.Event | None,
        template_variables: Mapping[str, object] | None,
    ) -> Generator[Chunk, None, None]:
        if not isinstance(turns[-1]["content"], str):
            raise ConfigError(f"The message is {turns[-1]['content']!r}; it must be a text.")
        system = [Message(role="system", content=self.system)] if self.system else []
        chunks = self._model.stream_chat(
            [*system, *turns], config, cancel=cancel, cache=self._cache, template_variables=template_variables
        )
        answer = self._record(turns, chunks)
        self._running = weakref.ref(answer)
        return answer

    def _end_running(self) -> None:
        running = None if self._running is None else self._running()
        if running is None:
            return
        if inspect.getgeneratorstate(running) == inspect.GEN_RUNNING:
            raise EdgeLMError(
                "Another thread is reading an answer of this conversation. Cancel that one first (the `cancel` that it "
                "was given) and wait for its last chunk, or hold each conversation in a ChatSession of its own."
            )
        running.close()
        self._running = None

    def _record(self, turns: list[Message], chunks: Generator[Chunk, None, None]) -> Generator[Chunk, None, None]:
        said, has_answered, before = "", False, self._cache.length
        try:
            for chunk in chunks:
                said += chunk.text
                has_answered = chunk.finish_reason not in (None, "cancelled")
                yield chunk
        finally:
            chunks.close()  # first: what was guessed ahead and is not known to be right leaves the cache with it
            # A question that was taken back while it was read would be read again with every turn to come.
            if said or has_answered:
                self._messages = [*turns, Message(role="assistant", content=said)]
            else:
                self._cache.truncate(min(before, self._cache.length))

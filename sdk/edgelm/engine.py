"""Engine: many requests on one model."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgelm.answer import Answer
from edgelm.errors import ConfigError, EdgeLMError, QueueFullError
from edgelm.generation import Generation
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How much an engine takes on.

    max_batch: requests computed at once. max_queue: requests that may wait besides.
    """

    max_batch: int = 8
    max_queue: int = 64

    def __post_init__(self) -> None:
        for name, least in (("max_batch", 1), ("max_queue", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of {least} or more.")


@dataclass(eq=False, kw_only=True)
class _Request:
    """A request on its way: the answer that is made, and who reads it."""

    answer: Answer
    generation: Generation
    priority: int
    expires: float  # time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether nobody wants the rest."""
        return self.generation.cancelled or time.monotonic() > self.expires


class Engine:
    """Answer many requests on one model, from any threads and event loops.

    One worker thread computes. Requests of a higher priority go first; among equals, the first come.
    """

    def __init__(self, model: LanguageModel, options: EngineOptions | None = None) -> None:
        self._model = model
        self._options = options or EngineOptions()
        self._waiting: list[_Request] = []
        self._unfinished = 0
        self._changed = threading.Condition()
        self._closed, self._draining = False, False
        self._worker = threading.Thread(target=self._work, name=f"edgelm-engine-{model.name}", daemon=True)
        self._worker.start()
        atexit.register(self.close)  # the worker must not be inside the runtime when the interpreter ends

    def submit(
        self,
        prompt: str | Sequence[int],
        config: GenerationConfig | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Generation:
        """Queue a prompt, and return its answer to come.

        priority: higher goes first. deadline: seconds from now, after which the answer ends as if cancelled.

        Raises:
            QueueFullError: `max_queue` requests wait already.
            ContextLengthError: the prompt does not fit the model's context, or has no tokens.
            TokenizerError: a token id is none of the model's.
            EdgeLMError: the engine is closed.
        """
        answer = self._model.answer(prompt, config)
        expires = float("inf") if deadline is None else time.monotonic() + deadline
        request = _Request(answer=answer, generation=Generation(self._wake), priority=priority, expires=expires)
        with self._changed:
            if self._closed or self._draining:
                raise EdgeLMError("The engine is closed; make a new one.")
            if self._unfinished >= self._options.max_batch + self._options.max_queue:
                raise QueueFullError(
                    f"{self._unfinished} requests are at work or wait: the engine answers {self._options.max_batch} at "
                    f"once (max_batch) and lets {self._options.max_queue} wait (max_queue). Try again later."
                )
            self._unfinished += 1
            self._waiting.append(request)
            self._changed.notify()
        return request.generation

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, and wait until the worker has ended: after the last answer, or after this step.

        drain: finish what was submitted; otherwise it ends with finish_reason "cancelled".
        """
        with self._changed:
            self._draining = True
            self._closed = self._closed or not drain
            self._changed.notify()
        if threading.current_thread() is not self._worker:
            self._worker.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._draining:
                    self._changed.wait()
                if not self._waiting:
                    return
                self._waiting.sort(key=lambda waiting: -waiting.priority)  # stable: among equals, the first come
                request = self._waiting.pop(0)
            self._answer(request)
            with self._changed:
                self._unfinished -= 1

    def _answer(self, request: _Request) -> None:
        stop = threading.Event()
        try:
            if self._closed or request.is_over:
                stop.set()
            for chunk in request.answer.chunks(self._model.session, self._model.session.new_cache(), stop):
                request.generation.put(chunk)
                if self._closed or request.is_over:
                    stop.set()
        except Exception as error:  # it belongs to whoever reads this answer; the other requests go on
            request.generation.put(error)

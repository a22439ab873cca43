"""Generation: the answer to one request of an engine, read while it is made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from edgelm.completion import Chunk
from edgelm.errors import EdgeLMError

# An answer that rests is computed again up to there. So whatever may be unread, one that is read slowly goes on by an
# eighth of its length before it rests again: all that is computed again is nine times the answer at most.
_SHARE_UNREAD = 8
_LOOKS_SECONDS = 0.1  # no wait is longer: on Windows Ctrl-C is heard when one is over, and a prompt can take minutes


class Generation:
    """Yield the chunks of one answer: `for chunk in generation`, or `async for chunk in generation`.

    Made by `Engine.submit` and `submit_chat`. Ctrl-C while it is waited for cancels it. One consumer reads it, in any
    thread or event loop. A slow one delays nobody: what it has not read yet is kept, and no answer is longer than the
    model's context. take: changes each chunk before it is read; None leaves it as it is. max_unread: texts that may be
    kept (EngineOptions). worker: the thread that computes the answer, which cannot wait for it.
    """

    def __init__(
        self,
        wake_engine: Callable[[], None],
        on_end: Callable[[], None],
        take: Callable[[Chunk], Chunk] | None = None,
        max_unread: int | None = None,
        worker: threading.Thread | None = None,
    ) -> None:
        self._worker = worker
        self._wake_engine, self._on_end, self._take, self._max_unread = wake_engine, on_end, take, max_unread
        self._process = os.getpid()
        self._cancelled = threading.Event()
        self._arrived = threading.Condition()
        self._unread: deque[Chunk | BaseException] = deque()
        self._texts = self._unread_texts = 0
        self._is_full = False
        self._ended = False
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled else "ended" if self._ended else "under way"
        return f"<Generation: {state}, {len(self._unread)} chunks unread>"

    def cancel(self) -> None:
        """End the answer within one step, from any thread; its last chunk has finish_reason "cancelled"."""
        self._check_process()
        self._cancelled.set()
        self._wake_engine()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @property
    def is_full(self) -> bool:
        """Whether so much is unread that the answer is not to go on before its reader has read it all."""
        return self._is_full

    @property
    def has_ended(self) -> bool:
        """Whether the engine has made the last chunk, though it may be unread."""
        return self._ended

    def put(self, item: Chunk | BaseException) -> None:
        """Take the next chunk from the engine; the last chunk, or an error, ends the answer."""
        is_last = isinstance(item, BaseException) or item.finish_reason is not None
        texts = count_texts(item)
        if is_last:
            self._on_end()  # first: whoever has read it finds the request's place free
        with self._arrived:
            self._unread.append(item)
            self._texts += texts
            self._unread_texts += texts
            if self._max_unread is not None:
                most = max(self._max_unread, self._texts // _SHARE_UNREAD)
                self._is_full = self._is_full or self._unread_texts > most
            self._ended = is_last
            waiting, self._waiting = self._waiting, None
            self._arrived.notify_all()  # a second reader, which there should not be, must not wait for ever
        if waiting is not None:
            loop, future = waiting
            with contextlib.suppress(RuntimeError):  # the event loop was closed: nobody waits any more
                loop.call_soon_threadsafe(_resolve, future)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        self._check_process()
        try:
            with self._arrived:
                while not self._unread:
                    if self._ended:
                        raise StopIteration
                    self._check_can_wait()
                    self._arrived.wait(_LOOKS_SECONDS)
                item = self._unread.popleft()
        except KeyboardInterrupt:
            self.cancel()  # as a stream ends there: in `join(engine.submit(…))` nobody else has the answer
            raise
        try:
            return self._read(item)
        except KeyboardInterrupt:
            self.cancel()  # what was taken out is lost
            raise
        finally:
            del item  # as in _read

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        self._check_process()
        while True:
            with self._arrived:
                if self._unread:
                    item = self._unread.popleft()
                    break
                if self._ended:
                    raise StopAsyncIteration
                self._check_can_wait()
                if self._waiting is not None and not self._waiting[1].done():
                    raise EdgeLMError("Another task waits for the next chunk of this answer; let one task read it.")
                loop = asyncio.get_running_loop()
                future = loop.create_future()
                self._waiting = loop, future
            await future
        try:
            return self._read(item)
        finally:
            del item  # as in _read

    def _check_process(self) -> None:
        if os.getpid() != self._process:  # no engine goes on with an answer in a fork
            raise EdgeLMError(
                f"This answer is made in process {self._process}; its fork {os.getpid()} can neither read nor cancel "
                "it. Load the model and make the engine after the fork."
            )

    def _check_can_wait(self) -> None:
        if threading.current_thread() is self._worker:
            raise EdgeLMError(
                "A processor or sampler waits for an answer of the engine that it computes for, which waits for it. "
                "Call LanguageModel.generate there, or read the answer in another thread."
            )

    def _read(self, item: Chunk | BaseException) -> Chunk:
        """Return what the reader gets; not under the lock, as the engine puts chunks while it holds its own."""
        with self._arrived:
            self._unread_texts -= count_texts(item)
            goes_on = self._is_full and not self._unread
            if goes_on:
                self._is_full = False
        if goes_on:
            self._wake_engine()
        try:
            if isinstance(item, (StopIteration, StopAsyncIteration)):  # of a sampler: to the reader it would be the end
                raise RuntimeError(f"What chooses the tokens raised {type(item).__name__}.") from item
            if isinstance(item, BaseException):
                raise item
            return item if self._take is None else self._take(item)
        finally:
            # The error's traceback refers to this frame, and to the worker's. If a frame referred to the error too,
            # that reference cycle would keep the model in memory until the garbage collector runs.
            del item


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def count_texts(item: Chunk | BaseException) -> int:
    """Count what takes memory in an item: a chunk, its tokens' log-probabilities, and their alternatives."""
    if isinstance(item, BaseException):
        return 0
    return 1 + sum(1 + len(token.alternatives) for token in item.logprobs)

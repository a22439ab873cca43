"""Answers: the generations of one request, read together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgelm.batching.generation import count_texts
from edgelm.completion import Chunk, Completion
from edgelm.decoding.answer import join
from edgelm.errors import QueueFullError
from edgelm.generation_config import GenerationConfig
from edgelm.server.api_error import ApiError
from edgelm.server.thread_shares import ThreadShares
from edgelm.structure.reasoning import Parser, Reasoning, take_in_turn

if TYPE_CHECKING:
    from edgelm.batching.generation import Generation
    from edgelm.server.loaded_model import LoadedModel
    from edgelm.server.metrics import Metrics

_RETRY_SECONDS = 0.1  # until an answer that found the queue full, though its request is at work, tries again
QUIET_SECONDS = 5.0  # proxies and clients take a connection for dead after some tens of seconds of silence
# Chunks and log-probabilities, of 0.2 to 0.6 kB each, in what is kept until it is whole: echoes, and answers that are
# not streamed.
MAX_TEXTS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Job:
    """One answer to make: token ids in, settings, what makes the parser of its calls of tools, and how it thinks."""

    prompt_ids: Sequence[int]
    config: GenerationConfig
    parser: Callable[[], Parser] | None = None
    reasoning: Reasoning | None = None


@dataclass(eq=False)
class Answers:
    """Make the answers to `jobs`, at most as many at once as the engine computes at once.

    The first ones are queued with `start`, so that a queue without a place for any is known before anything was sent.
    """

    served: LoadedModel
    jobs: Sequence[Job]
    caller: str
    deadline: float  # time.monotonic()
    metrics: Metrics
    threads: ThreadShares = field(default_factory=ThreadShares)
    _running: dict[int, Generation] = field(default_factory=dict)
    _cancelled: bool = False

    def start(self) -> None:
        """Queue the first answers.

        Raises:
            QueueFullError, ContextLengthError, TokenizerError, ConfigError: as Turns.submit.
        """
        for index in range(min(len(self.jobs), self.served.max_batch)):
            try:
                self._submit(index)
            except QueueFullError:
                if not index:
                    raise
                return  # the others wait: a full queue takes one answer of each caller

    def cancel(self) -> None:
        """End what runs, within one step, and begin nothing more."""
        self._cancelled = True
        for generation in list(self._running.values()):
            generation.cancel()

    async def chunks(self) -> AsyncGenerator[tuple[int, Chunk] | None, None]:
        """Yield the chunks of all answers as they come, with their job's index; None after some seconds of silence."""
        # Short, so that what a client does not read waits in the engine, which stops at a limit.
        arrived: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue(self.served.max_batch)
        turns = asyncio.Semaphore(self.served.max_batch)
        readers = [asyncio.create_task(self._read(index, turns, arrived)) for index in range(len(self.jobs))]
        left = len(readers)
        try:
            while left:
                try:
                    # Not wait_for: before Python 3.12 it loses a cancellation that comes together with an item.
                    async with asyncio.timeout(QUIET_SECONDS):
                        index, item = await arrived.get()
                except TimeoutError:
                    yield None
                    continue
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield index, item
        finally:
            self.cancel()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def completions(self) -> list[Completion]:
        """Return all answers, whole, in the order of the jobs.

        Raises:
            ApiError: 400, they have more than MAX_TEXTS chunks and log-probabilities.
        """
        parts: list[list[Chunk]] = [[] for _ in self.jobs]
        texts = 0
        async with contextlib.aclosing(self.chunks()) as chunks:
            async for item in chunks:
                if item is None:
                    continue
                index, chunk = item
                parts[index].append(chunk)
                texts += count_texts(chunk)
                if texts > MAX_TEXTS:
                    raise ApiError(
                        400,
                        f"The answers have more than {MAX_TEXTS} pieces and log-probabilities, which are kept until "
                        "all are made. Stream them, or ask for fewer.",
                    )
        return [join(chunks) for chunks in parts]

    def _submit(self, index: int) -> Generation:
        job = self.jobs[index]
        seconds_left = max(0.0, self.deadline - time.monotonic())
        generation = self.served.turns.submit(self.caller, job.prompt_ids, job.config, deadline=seconds_left)
        self._running[index] = generation
        if self._cancelled:  # while the prompt was on its way to the engine, in another thread
            generation.cancel()
        return generation

    async def _submit_in_turn(self, index: int) -> Generation:
        """Queue an answer that was not among the first ones, as soon as the queue has a place for it.

        Raises:
            QueueFullError: there was none before the deadline; and as `start`.
        """
        while True:
            try:
                return await self.threads.run(self.caller, self._submit, index)
            except QueueFullError:
                if time.monotonic() > self.deadline:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    async def _read(
        self, index: int, turns: asyncio.Semaphore, arrived: asyncio.Queue[tuple[int, Chunk | Exception | None]]
    ) -> None:
        async with turns:
            try:
                generation = self._running.get(index)
                if generation is None:
                    generation = await self._submit_in_turn(index)
                async for chunk in _parsed(generation, self.jobs[index]):
                    self.metrics.count_chunk(self.served.name, chunk)
                    await arrived.put((index, chunk))
                self._running.pop(index, None)
                await arrived.put((index, None))
            except Exception as error:  # the request fails with it, and so do its other answers
                await arrived.put((index, error))


async def _parsed(generation: Generation, job: Job) -> AsyncIterator[Chunk]:
    """Yield the chunks with thinking and tool calls apart from the text, and with a reason that the protocols have."""
    thoughts = None if job.reasoning is None else job.reasoning.splitter()
    take = take_in_turn(thoughts, None if job.parser is None else job.parser())
    async for chunk in generation:
        if chunk.finish_reason == "cancelled":  # the time that a request may take is over
            chunk = dataclasses.replace(chunk, finish_reason="length")
        yield chunk if take is None else take(chunk)

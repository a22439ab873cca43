"""Worker: the thread of an engine, and the requests that wait for it."""

from __future__ import annotations

import math
import os
import threading
import time
from typing import NamedTuple

from edgelm.batching.request import Request
from edgelm.batching.running_batch import RunningBatch
from edgelm.counted import counted
from edgelm.errors import EdgeLMError, OutOfMemoryError, QueueFullError
from edgelm.memory.out_of_memory import out_of_memory
from edgelm.runtime.switch_interval import SHORT_SWITCH_INTERVAL


class Counts(NamedTuple):
    """How many requests a worker was given, how many of them have no end yet, and how many of those wait."""

    submitted: int
    unfinished: int
    queued: int


class Worker:
    """Start requests when there is room for them, and compute a batch of them, in a thread of its own.

    The thread refers to this and not to the engine, so that an engine nobody uses is freed while the thread waits.
    """

    def __init__(self, name: str, batch: RunningBatch, max_batch: int) -> None:
        self._batch, self._max_batch = batch, max_batch
        self._process = os.getpid()
        self._waiting: list[Request] = []
        self._unfinished = self._submitted = 0
        self._changed = threading.Condition()
        self._closed, self._draining = False, False
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)  # started by the engine

    def counts(self) -> Counts:
        """Count the requests."""
        with self._changed:
            return Counts(self._submitted, self._unfinished, len(self._waiting) + len(self._batch.put_back))

    def check_process(self) -> None:
        """Check that this is the process that has the thread.

        Raises:
            EdgeLMError: it is a fork of that one.
        """
        if os.getpid() != self._process:
            raise EdgeLMError(
                f"This engine belongs to process {self._process}; its fork {os.getpid()} has no worker. Load the "
                "model and make the engine after the fork."
            )

    def take(self, request: Request, max_queue: int) -> None:
        """Take a request, unless `max_queue` of them wait already beside those at work.

        Raises:
            QueueFullError: so many wait.
            EdgeLMError: the worker was told to end.
        """
        with self._changed:
            if self._draining:
                raise EdgeLMError("The engine is closed; make a new one.")
            if self._unfinished >= self._max_batch + max_queue:
                raise QueueFullError(
                    f"{counted(self._unfinished, 'request')} at work or waiting: the engine answers {self._max_batch} "
                    f"at once (max_batch) and lets {max_queue} wait (max_queue). Try again later."
                )
            self._unfinished += 1
            self._submitted += 1
            request.number = self._submitted
            self._waiting.append(request)
            self._changed.notify_all()  # all: an interrupted wait may have left a waiter in the list that is gone
            if len(self._batch.requests) < self._max_batch:
                self._batch.interrupt(len(request.prompt_ids))

    def wake(self) -> None:
        """Look at the requests again: one of them may be over."""
        with self._changed:
            self._changed.notify_all()
        self._batch.interrupt()

    def count_end(self) -> None:
        """Take note that a request has its end."""
        with self._changed:
            self._unfinished -= 1

    def close(self, *, drain: bool = False) -> None:
        """Let the thread end, after the last answer or after this step, and wait for it, as Engine.close does."""
        if os.getpid() != self._process:  # a fork's copy: the thread is the other process's
            return
        with self._changed:
            self._draining = True
            self._closed = self._closed or not drain
            self._changed.notify_all()
        # The thread ends by itself when its step is over. An interrupt may have come before it was started.
        if threading.current_thread() is not self.thread and self.thread.ident is not None:
            self.thread.join()

    def _work(self) -> None:
        while True:
            try:
                try:
                    if not self._wait():
                        return
                    with SHORT_SWITCH_INTERVAL:
                        self._batch.step()
                except OutOfMemoryError as error:
                    self._batch.relieve(error)
            except MemoryError as error:
                self._batch.fail(error if isinstance(error, OutOfMemoryError) else out_of_memory(error))
            except Exception as error:  # what fails for all of them; the next requests may do better
                self._batch.fail(error)

    def _wait(self) -> bool:
        """Wait until there is something to compute; return False where the thread has to end."""
        with self._changed:
            while True:
                self._admit()  # a method, whose variables are gone while this waits: a request keeps its engine alive
                if self._batch.requests:
                    return True
                if self._draining:
                    return False
                self._changed.wait(self._seconds_to_deadline())

    def _admit(self) -> None:
        """Drop what nobody waits for, and start what fits."""
        for request in self._batch.requests:
            if self._closed or request.is_over:
                self._batch.drop(request)
            elif self._rests(request):
                self._batch.put_aside(request)
        self._waiting += self._batch.put_back
        self._batch.put_back.clear()
        for request in [request for request in self._waiting if self._closed or request.is_over]:
            chunk = request.last_chunk(request.answer.rest(), "cancelled")
            self._waiting.remove(request)
            request.end(chunk)
        self._waiting.sort(key=lambda request: request.rank)
        for request in [request for request in self._waiting if not self._rests(request)]:
            if len(self._batch.requests) >= self._max_batch or not self._batch.has_room_for(request):
                break
            self._waiting.remove(request)
            self._batch.add(request)

    def _seconds_to_deadline(self) -> float | None:
        """Return in how many seconds an answer that waits is over by its deadline, the first; None: none has one."""
        first = min((request.expires for request in self._waiting), default=math.inf)
        return None if first == math.inf else min(max(0.0, first - time.monotonic()), threading.TIMEOUT_MAX)

    def _rests(self, request: Request) -> bool:
        """Tell whether an answer waits for its reader; a worker that is to end waits for none."""
        return request.generation.is_full and not self._draining

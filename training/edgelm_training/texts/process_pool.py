"""ProcessPool: tasks in processes of their own, which stop at once when they are to, and never outlive their parent."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from edgelm.errors import DataError
from edgelm.runtime.cpu import cpu_quota

Task = TypeVar("Task")
Result = TypeVar("Result")

# On Windows no Ctrl-C ends a wait: none is longer than this.
_LOOKS_SECONDS = 0.1
# In a worker: set when it is to stop.
_stop: Any = None


class _StoppedError(Exception):
    """A worker was told to stop."""


def available_cores() -> int:
    """Count the processors that this process may use: those it may run on, within its container's share of time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def check_stop() -> None:
    """Leave a task if its result is not waited for any more; tasks are to call this often."""
    if _stop is not None and _stop.is_set():
        raise _StoppedError


def run_tasks(function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int) -> Iterator[Result]:
    """Yield the results of tasks, in whatever order they end; with one worker, in this process.

    An error of a task, Ctrl-C, or a caller who stops listening ends the other tasks. Processes are spawned, so a
    program that calls this needs the usual `if __name__ == "__main__":`.

    Raises:
        DataError: a worker was killed from outside.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: a fork of a process with threads (tokenizers', a progress line's) can hang.
    spawn = multiprocessing.get_context("spawn")
    with _working_folder_passed_over():  # it starts a process that counts semaphores
        stop = spawn.Event()
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_initialize, initargs=(stop,)) as pool:
        try:
            with _interrupts_held_back(), _working_folder_passed_over():
                futures = [pool.submit(function, task) for task in tasks]
            for future in _as_they_end(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "A worker process was killed, maybe because memory ran out. Run the command again to go on, with fewer "
                "--workers if memory is short."
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)  # and wait: those that begin still read `stop`


def _as_they_end(futures: Sequence[Future[Result]]) -> Iterator[Future[Result]]:
    ended: SimpleQueue[Future[Result]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    left = len(futures)
    while left:
        try:
            future = ended.get(timeout=_LOOKS_SECONDS)
        except Empty:
            continue
        left -= 1
        yield future


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let no Ctrl-C break the block off, nor ever reach the processes that begin in it: they inherit that.

    It would end each of them in a traceback of its own while it imports, before `_initialize`.
    """
    arrived: list[int] = []

    def raise_again() -> None:
        if arrived:
            signal.raise_signal(signal.SIGINT)

    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is not None:
            # The mask is this thread's alone. Where another one gets the signal, Python calls the handler here.
            previous = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
            stack.callback(raise_again)
            stack.callback(signal.signal, signal.SIGINT, previous)
        if sys.platform != "win32":  # it has no such mask
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
        yield


@contextlib.contextmanager
def _working_folder_passed_over() -> Iterator[None]:
    """Let the processes that begin in the block look for no modules in the working folder, which may be anybody's.

    They are `python -c`, which looks there first, also for multiprocessing itself. Each gets our `sys.path` then.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _initialize(stop: Any) -> None:
    global _stop
    _stop = stop
    # Ctrl-C reaches every process of a terminal; the parent tells its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The processes are the parallelism; the tokenizers library would add threads to each.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent closes no queue: the worker would wait for ever

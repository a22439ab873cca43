"""Where the system lets this process start no more threads, the error says what can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgelm.errors import ThreadLimitError

_REFUSALS = ("can't start new thread", "pthread_create failed")  # Python's words, and ONNX Runtime's


def no_more_threads(error: Exception) -> ThreadLimitError | None:
    """Return what to raise from an error that a thread which did not start gave; None from another one."""
    if not any(refusal in str(error) for refusal in _REFUSALS):
        return None
    return ThreadLimitError(
        "The system lets this process start no more threads. Raise what bounds them (ulimit -u of its user, TasksMax= "
        "of a service, --pids-limit of a container), or end other programs."
    )


@contextmanager
def thread_errors_told() -> Iterator[None]:
    """Raise ThreadLimitError where the block, or the function that this decorates, cannot start a thread."""
    try:
        yield
    except RuntimeError as error:
        if refusal := no_more_threads(error):
            raise refusal from error
        raise

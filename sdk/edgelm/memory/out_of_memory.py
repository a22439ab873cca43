"""Where memory runs out, the error says what can be done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgelm.errors import OutOfMemoryError


def out_of_memory(error: MemoryError) -> OutOfMemoryError:
    """Return what to raise from an error that the system, numpy or ONNX Runtime gave."""
    return OutOfMemoryError(
        f"There is no memory left: {str(error).rstrip('.') or 'it does not say for what'}. Shorten the text, compute "
        "fewer at once (max_batch), or free memory: prefixes.clear() of the model, or less beside it."
    )


@contextmanager
def memory_errors_told() -> Iterator[None]:
    """Raise OutOfMemoryError where the block, or the function that this decorates, has no memory."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except MemoryError as error:
        raise out_of_memory(error) from error

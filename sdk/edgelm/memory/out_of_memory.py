"""Where memory runs out, the error says what can be done."""

from __future__ import annotations

from edgelm.errors import OutOfMemoryError


def out_of_memory(error: MemoryError) -> OutOfMemoryError:
    """Return what to raise from an error that the system, numpy or ONNX Runtime gave."""
    return OutOfMemoryError(
        f"There is no memory left: {str(error).rstrip('.') or 'it does not say for what'}. Shorten the text, compute "
        "fewer at once (max_batch), or free memory: prefixes.clear() of the model, or less beside it."
    )

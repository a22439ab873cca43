"""StopSwitch: ends a running call of the graph from another thread."""

from __future__ import annotations

from typing import Protocol


class StoppedError(Exception):
    """A call of the graph was stopped; its cache holds what it held before. Only loops see it."""


class RunOptions(Protocol):
    """What ONNX Runtime asks while it runs."""

    terminate: bool


class StopSwitch:
    """Stop one call of `forward` within a millisecond, where a piece of a prompt takes a tenth of a second and more."""

    def __init__(self) -> None:
        self.is_pressed = False
        self._options: RunOptions | None = None

    def press(self) -> None:
        """Stop the call, from any thread; without effect once it has ended."""
        self.is_pressed = True
        if self._options is not None:
            self._options.terminate = True

    def connect(self, options: RunOptions) -> None:
        """Let the switch act on a call that begins now."""
        self._options = options
        if self.is_pressed:
            options.terminate = True

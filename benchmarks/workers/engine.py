"""Engine: what every runtime is asked to do, in token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the runtime loads its model; huge_pages: its memory will be moved to huge pages.

    context: the tokens that a text may have, for a runtime that takes its memory ahead.
    """

    path: str
    threads: int
    context: int
    huge_pages: bool


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One greedy generation; times in seconds.

    first_token: from the call until the first token is drawn. steps: each further token. python: the part of each step
    that is not the runtime's; None where it is not measured.
    """

    token_ids: list[int]
    first_token: float
    steps: list[float]
    python: list[float] | None = None


class Engine(Protocol):
    """One runtime with its model loaded."""

    def generate(self, prompt_ids: list[int], new_tokens: int) -> Generation:
        """Continue a prompt greedily by exactly `new_tokens`, on a fresh KV cache; an end token does not end it."""

    def log_likelihood(self, ids: list[int]) -> float:
        """Sum the natural log-probabilities of all tokens but the first."""

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        """Return the logits [T, V] of all positions."""

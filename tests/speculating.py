"""What tests of guessed tokens share: a model that guesses whenever it can, and texts that repeat themselves."""

from __future__ import annotations

import random
from pathlib import Path

import edgelm
from edgelm.decoding.draft_length import StepCosts
from edgelm.language_model import LanguageModel
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.session import SessionOptions


class FixedCosts(StepCosts):
    """Let every further token cost a part of a step, whatever the machine is doing."""

    is_known = True

    def __init__(self, part: float = 0.05) -> None:
        super().__init__()
        self._part = part

    def add(self, tokens: int, seconds: float) -> None:
        """Learn nothing."""

    def seconds(self, tokens: int) -> float:
        return 1.0 + self._part * (tokens - 1)


def eager(model: LanguageModel) -> LanguageModel:
    """Make a model guess whenever it can, and keep nothing between answers."""
    model.step_costs = model.exact_step_costs = FixedCosts()
    model.prefixes = PrefixCache(model.config, 0)
    return model


def load(folder: Path, threads: int = 1) -> LanguageModel:
    return eager(edgelm.load(folder, SessionOptions(threads=threads)))


def repetitive(draw: random.Random, length: int) -> list[int]:
    """Return a prompt in which pieces come again."""
    pieces = [[draw.randrange(5, 320) for _ in range(draw.randint(3, 9))] for _ in range(3)]
    ids: list[int] = []
    while len(ids) < length:
        ids += draw.choice(pieces)
    return ids[:length]

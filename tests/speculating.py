"""What tests of guessed tokens share: a model that guesses whenever it can, and requests that repeat themselves."""

from __future__ import annotations

import random
from pathlib import Path

import edgelm
from edgelm.decoding.draft_length import StepCosts
from edgelm.generation_config import GenerationConfig
from edgelm.language_model import LanguageModel
from edgelm.memory.prefix_cache import PrefixCache
from edgelm.runtime.session_options import SessionOptions


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
    model.step_costs = model.row_costs = FixedCosts()
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


def configs(count: int, seed: int) -> list[tuple[list[int], GenerationConfig]]:
    """Greedy and drawn, with penalties, stops, processors, log-probabilities, and a window of repetitions."""
    draw = random.Random(seed)
    return [
        (
            repetitive(draw, draw.choice([1, 2, 20, 127, 128, 200])),
            GenerationConfig(
                max_new_tokens=draw.randint(1, 60),
                ignore_eos=draw.random() < 0.8,
                temperature=(temperature := draw.choice([0.0, 0.0, 0.2, 1.0])),
                top_p=draw.choice([1.0, 0.9]),
                repetition_penalty=draw.choice([1.0, 1.0, 1.1]),
                dry_multiplier=draw.choice([0.0, 0.0, 0.5]),
                no_repeat_ngram_size=draw.choice([0, 0, 0, 4]),
                min_new_tokens=draw.choice([0, 0, 30]),
                mirostat_tau=draw.choice([0.0, 0.0, 3.0]) if temperature else 0.0,
                stop_token_ids=tuple(draw.sample(range(320), 2)),
                stop=draw.choice([(), ("ea",)]),
                logprobs=draw.choice([None, 2]),
                seed=i,
            ),
        )
        for i in range(count)
    ]

"""The learning rate as a function of the step: a warm-up, then one of a table of shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Of max_steps, where nothing else is asked for.
_WARMUP_PART = 0.02

# How much of the peak is left after a part (0 to 1) of the run behind the warm-up; the second number is decay_fraction.
Shape = Callable[[float, float], float]


def cosine(part: float, _decay_fraction: float) -> float:
    """Fall along half a cosine (arXiv:1608.03983)."""
    return 0.5 * (1.0 + math.cos(math.pi * part))


def linear(part: float, _decay_fraction: float) -> float:
    """Fall in a straight line (arXiv:2502.15938 finds it better than the cosine where the run is long)."""
    return 1.0 - part


def wsd(part: float, decay_fraction: float) -> float:
    """Warm up, stay, decay: fall only in the last part (arXiv:2404.06395), by 1 - √x (arXiv:2405.18392)."""
    left = 1.0 - part
    return 1.0 if left >= decay_fraction else 1.0 - math.sqrt(1.0 - left / decay_fraction)


def constant(_part: float, _decay_fraction: float) -> float:
    """Stay."""
    return 1.0


SCHEDULES: dict[str, Shape] = {"cosine": cosine, "linear": linear, "wsd": wsd, "constant": constant}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the step."""

    shape: str
    peak: float
    warmup_steps: int
    max_steps: int
    decay_fraction: float
    min_ratio: float

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step; the first is 1, the last is max_steps."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        part = (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)
        left = SCHEDULES[self.shape](part, self.decay_fraction)
        return self.peak * (self.min_ratio + (1.0 - self.min_ratio) * left)


def warmup_or_usual(warmup_steps: int | None, max_steps: int) -> int:
    """Return the warm-up that is asked for, else the usual share of the run."""
    return max(1, round(_WARMUP_PART * max_steps)) if warmup_steps is None else warmup_steps

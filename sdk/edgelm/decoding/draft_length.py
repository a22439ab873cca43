"""DraftLength: how many tokens to guess, from how often guesses come true and what longer steps cost here."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass

# What a further token adds to a step, until that was measured (8-bit, block 64: docs/results/graph-and-settings.md).
_SLOPE = 0.17
_SAMPLES = 9
_WEIGHT = 3.0  # what is expected at first counts as so many guesses; older guesses count less and less:
_FADE = 0.97
_LEAST_GAIN = 1.03  # what is learned is not exact: a smaller gain may be none


class StepCosts:
    """Learn how long steps of several tokens take on this machine, from those that were computed.

    One for each model. Threads may share it: a lost sample harms nothing.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self._medians: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """Take how long a step of so many tokens took."""
        samples = self._samples[tokens]
        samples.append(seconds)
        ordered = sorted(samples)  # once: another thread may add to them meanwhile
        self._medians[tokens] = ordered[len(ordered) // 2]

    @property
    def is_known(self) -> bool:
        """Whether a step was seen, which others are compared with."""
        return bool(self._medians)

    def seconds(self, tokens: int) -> float:
        """Return how long a step of so many tokens takes: the median of the last ones, or what others let expect."""
        known = self._medians.get(tokens)
        if known is not None:
            return known
        seen = tuple(self._medians)
        least = min(seen)
        base, others = self._medians[least], [count for count in seen if count > least]
        if not others:
            return base * (1 + _SLOPE * (tokens - 1)) / (1 + _SLOPE * (least - 1))
        nearest = min(others, key=lambda count: abs(count - tokens))
        expected = base + max(0.0, self._medians[nearest] - base) * (tokens - least) / (nearest - least)
        return max(expected, base * tokens / max(tokens, least))  # no step takes less than its part of a longer one


@dataclass(frozen=True)
class StepPlan:
    """What a step is to compute: how many tokens, in one call or as rows; how many are expected to stay, and how long
    guessing takes.
    """

    costs: StepCosts
    computed: int = 1
    tokens: float = 1.0
    guess_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """How many tokens a second that gives."""
        return self.tokens / (self.costs.seconds(self.computed) + self.guess_seconds)


class DraftLength:
    """Choose how many tokens to guess so that a step gives the most tokens for its time: none where guessing loses.

    expected: for each kind of guess, how often a token of it is right, until more is known.
    """

    def __init__(self, expected: Mapping[int, float]) -> None:
        self._right = {kind: _WEIGHT * chance for kind, chance in expected.items()}
        self._all = dict.fromkeys(self._right, _WEIGHT)
        self._guess_samples: deque[float] | None = None
        self._guess_seconds = 0.0  # for one token

    def best(self, kind: int, most: int, plan: StepPlan) -> StepPlan:
        """Return the plan with the count of guesses, from 0 to `most`, that promises the most tokens a second."""
        best, chance = plan, self._right[kind] / self._all[kind]
        if not plan.costs.is_known:
            return best
        best_rate, tokens = _LEAST_GAIN * plan.rate, plan.tokens
        for count in range(1, most + 1):
            tokens += chance**count
            seconds = plan.guess_seconds + count * self._guess_seconds
            longer = StepPlan(plan.costs, plan.computed + count, tokens, seconds)
            if longer.rate > best_rate:
                best, best_rate = longer, longer.rate
        return best

    def learn(self, kind: int, right: int, failed: bool) -> None:
        """Take what became of a guess: how many tokens were right, and whether the one after them was wrong."""
        tried = right + failed
        fade = _FADE**tried
        self._right[kind] = self._right[kind] * fade + right
        self._all[kind] = self._all[kind] * fade + tried

    def learn_cost(self, count: int, seconds: float) -> None:
        """Take how long guessing `count` tokens took; not the first time, when a draft ends the prompt."""
        if self._guess_samples is None:
            self._guess_samples = deque(maxlen=_SAMPLES)
            return
        self._guess_samples.append(seconds / count)
        self._guess_seconds = sorted(self._guess_samples)[len(self._guess_samples) // 2]

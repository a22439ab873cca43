"""Frontier: the sizes a model can have, each with the assignment of schemes that costs the least divergence.

Errors of different groups are nearly independent, so that their divergences add up (docs/results/quantization.md says
how nearly). Then the best assignment comes from a greedy walk: from the smallest schemes on, the step that saves most
divergence a byte, with each group's choices on their lower convex hull.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One scheme that a group may take: its bytes, and the divergence it costs in nats a token."""

    scheme: str
    size: int
    divergence: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """One place on the frontier: bytes of the weights, predicted divergence, and the scheme of each group."""

    size: int
    divergence: float
    schemes: Mapping[str, str]


def walk_frontier(choices: Mapping[str, Sequence[Choice]], within: float = math.inf) -> list[Point]:
    """Return the frontier from the smallest size to the largest.

    within: of steps that would lead beyond this size none is taken, and smaller ones behind them are: the last point is
    what that size is best filled with. The first is there in any case.
    """
    hulls = {group: _hull(options) for group, options in choices.items()}
    at = {group: hull[0] for group, hull in hulls.items()}
    steps = [
        ((before.divergence - after.divergence) / (after.size - before.size), group, after)
        for group, hull in hulls.items()
        for before, after in pairwise(hull)
    ]
    points = [_point(at)]
    # On a hull each step saves less a byte than the one before it, so that a group's steps come in their order.
    for _, group, after in sorted(steps, key=lambda step: -step[0]):
        # A group's later steps lead further still, so that none of them is taken without the one before it.
        if points[-1].size - at[group].size + after.size <= within:
            at[group] = after
            points.append(_point(at))
    return points


def _point(at: Mapping[str, Choice]) -> Point:
    return Point(
        size=sum(choice.size for choice in at.values()),
        divergence=sum(choice.divergence for choice in at.values()),
        schemes={group: choice.scheme for group, choice in at.items()},
    )


def _hull(options: Sequence[Choice]) -> list[Choice]:
    """Keep the choices that no mix of a smaller and a larger one beats."""
    hull: list[Choice] = []
    for option in sorted(options, key=lambda choice: (choice.size, choice.divergence)):
        if hull and option.divergence >= hull[-1].divergence:
            continue
        while len(hull) > 1 and _saving(hull[-2], hull[-1]) <= _saving(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _saving(smaller: Choice, larger: Choice) -> float:
    return (smaller.divergence - larger.divergence) / (larger.size - smaller.size)

"""Bounds of the numbers of a config: what every library that computes with them still holds."""

from __future__ import annotations

MOST = 2**31 - 1  # of any size: products of a few still fit the numbers of every library
FLOAT32_END = 2.0**128


def is_count(value: object, least: int, most: int = MOST) -> bool:
    """Tell whether a value is a whole number within bounds; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_positive(value: object) -> bool:
    """Tell whether a value is a number above zero that float32 holds; true is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < FLOAT32_END

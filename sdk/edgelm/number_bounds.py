"""Bounds of the numbers of a config: what every library that computes with them still holds."""

from __future__ import annotations

from typing import TypeGuard

from edgelm.errors import ConfigError

MOST = 2**31 - 1  # of any size: products of a few still fit the numbers of every library
FLOAT32_END = 2.0**128 - 2.0**103  # from here on float32 rounds to infinity
_MOST_SHOWN = 64  # bits: Python does not write a number of more than some thousand digits


def is_count(value: object, least: int, most: int = MOST) -> TypeGuard[int]:
    """Tell whether a value is a whole number within bounds; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_count(values: object, name: str, least: int, most: int = MOST) -> None:
    """Check that a field is a whole number within bounds.

    Raises:
        ConfigError: it is none.
    """
    value = getattr(values, name)
    if not is_count(value, least, most):
        is_huge = isinstance(value, int) and value.bit_length() > _MOST_SHOWN
        shown = f"a number of {value.bit_length()} bits" if is_huge else f"{value!r:.60}"
        raise ConfigError(f"{name} is {shown}; it must be a whole number from {least} to {most}.")


def is_positive(value: object) -> bool:
    """Tell whether a value is a number above zero that float32 holds; true is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < FLOAT32_END

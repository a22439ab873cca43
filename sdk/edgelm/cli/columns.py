"""How many columns of a terminal a text takes: a character of Chinese takes two, an accent of its own none."""

from __future__ import annotations

import unicodedata


def columns(text: str) -> int:
    """Count the columns of a text in one line."""
    return sum(map(_columns_of, unicodedata.normalize("NFC", text)))  # macOS parts the syllables of Korean


def _columns_of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int) -> str:
    """Put spaces behind a text, up to a width."""
    return text + " " * (width - columns(text))


def cut_to(text: str, width: int) -> str:
    """Return as much of the beginning of a text as has room."""
    taken = 0
    for place, character in enumerate(text):
        taken += _columns_of(character)
        if taken > width:
            return text[:place]
    return text

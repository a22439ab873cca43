"""A number of things, in a message."""

from __future__ import annotations


def counted(count: int, what: str = "token", several: str | None = None) -> str:
    """Say how many there are: "1 token", "2,000 files"; `several` is the plural, where more than an s makes it."""
    return f"{count:,} {what if count == 1 else several or f'{what}s'}"

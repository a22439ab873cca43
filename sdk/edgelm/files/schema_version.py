"""The number of the form in which a file is written: another one than this edgelm's is refused, with the way out."""

from __future__ import annotations

KEY = "schema_version"


def other_version(values: object, known: int, again: str) -> str | None:
    """Say that the values of a file have another version than `known`; None: they have this one.

    again: what to do with a file of an older version, or of none.
    """
    found = values.get(KEY) if isinstance(values, dict) else None
    if type(found) is int and found == known:
        return None
    is_newer = type(found) is int and found > known
    return f"has {KEY} {found!r}; this edgelm reads {known}. {'Update edgelm' if is_newer else again}."

"""The bundled text that exported packages are checked on."""

from __future__ import annotations

from importlib import resources


def verification_text() -> str:
    """Return 11 KB of plain English: stories, letters, a recipe, code, a table, sums, history and science."""
    return resources.files("edgelm_export").joinpath("data", "verification.txt").read_text(encoding="utf-8")

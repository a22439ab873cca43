"""A line of text for each name: each is a small file, which appears, changes and goes in one step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgelm.files import atomic
from edgelm.files.regular_file import read_text


class SmallFiles:
    """Hold files below `folder`: a file's name is that of a model or an alias, its content what is written of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[str]:
        """Give the names, in alphabetical order."""
        if self._folder.is_dir():
            yield from sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def read(self, name: str) -> str | None:
        """Return what is written of a name, or None where there is nothing that can be read."""
        try:
            return read_text(self._folder / name).strip() or None
        except (OSError, ValueError):
            return None

    def write(self, name: str, text: str) -> None:
        """Write `text` of a name, whatever was written of it before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self._folder / name, f"{text}\n")

    def remove(self, name: str) -> bool:
        """Forget a name, and tell whether there was one."""
        path = self._folder / name
        if not path.is_file():
            return False
        path.unlink(missing_ok=True)
        return True

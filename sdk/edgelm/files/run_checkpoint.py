"""The checkpoint that stands for a training run, where somebody names the run's folder."""

from __future__ import annotations

from pathlib import Path

# Links that a run keeps: to its newest checkpoint, and to the one of the lowest validation loss, where there was one.
LATEST, BEST = "latest", "best"


def checkpoint_of_run(folder: Path) -> Path | None:
    """Return the best checkpoint of a run, the newest where nothing was validated; None: the folder is no run's."""
    if not (folder / "checkpoints").is_dir():
        return None
    return next((folder / link for link in (BEST, LATEST) if (folder / link).is_dir()), None)

"""RunFolder: settings, log and checkpoints of one training run.

run/
  config.toml                   every setting, as the run uses it
  log.jsonl                     a line each step, validation and sample
  checkpoints/step-00000100/    a checkpoint folder that `edgelm export` takes, and trainer/ to go on from
  latest, best                  links to the newest checkpoint and to the one of the lowest validation loss
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import TrainingError
from edgelm.files import atomic, schema_version
from edgelm.files.file_lock import file_lock
from edgelm.files.folder_entries import entries_of
from edgelm.files.run_checkpoint import BEST, LATEST
from edgelm.package.replaceable import refuse_inside_package

CONFIG_FILE = "config.toml"
LOG_FILE = "log.jsonl"
CHECKPOINTS = "checkpoints"
TRAINER_FOLDER = "trainer"
STATE_FILE = "state.json"
STATE_VERSION = 1
_LOCK_FILE = ".lock"
_STEP = re.compile(r"step-\d+")


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """A whole checkpoint of a run; `state` is what trainer/state.json holds."""

    step: int
    path: Path
    state: dict[str, Any]

    @property
    def validation_loss(self) -> float | None:
        """The validation loss at that step, where it was measured."""
        return self.state.get("validation_loss")


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG_FILE
        self.log_file = self.path / LOG_FILE

    def open(self, *, resume: bool) -> None:
        """Make the folder, or make sure that it may be gone on with.

        Raises:
            TrainingError: it holds a run and `resume` is off, or it holds something else, or lies in a package.
        """
        if not self.config_file.exists():
            refuse_inside_package(self.path, TrainingError)
        entries = [entry.name for entry in entries_of(self.path)] if self.path.exists() else []
        if entries and not self.config_file.exists() and entries != [_LOCK_FILE]:
            raise TrainingError(f"{self.path} is not empty and holds no run. Choose another folder for the run.")
        if self.config_file.exists() and not resume:
            newest = self.newest()
            reached = f", saved at step {newest.step}" if newest else ""
            raise TrainingError(
                f"{self.path} already holds a run{reached}. Go on with it (--resume), or choose another folder (-o)."
            )

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training in this folder during the block.

        Raises:
            TrainingError: another process is training here, or the folder cannot be made.
        """

        def refuse(holder: str) -> None:
            raise TrainingError(f"Another process ({holder or 'just started'}) is training in {self.path}.")

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(
                f"The run's folder {self.path} cannot be made: {error.strerror}. Choose another: -o FOLDER."
            ) from error
        with file_lock(self.path / _LOCK_FILE, refuse, tidy=self._remove_if_not_begun):
            yield

    def _remove_if_not_begun(self) -> None:
        """Leave nothing of a run that did not begin."""
        if [entry.name for entry in entries_of(self.path)] == [_LOCK_FILE]:
            shutil.rmtree(self.path, ignore_errors=True)

    def write_config(self, text: str) -> None:
        """Write the settings of the run.

        Raises:
            TrainingError: the disk is full, or the folder cannot be written.
        """
        try:
            atomic.write_text(self.config_file, text)
        except OSError as error:
            raise TrainingError(
                f"Cannot write {self.config_file}: {error.strerror}. Make room, or choose another folder (-o)."
            ) from error

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of a step is."""
        return self.path / CHECKPOINTS / f"step-{step:08d}"

    def checkpoints(self) -> list[SavedStep]:
        """Return the whole checkpoints, the oldest first; what is not whole is passed over.

        Raises:
            TrainingError: another version of edgelm has saved one.
        """
        found = [_saved_step(path) for path in self._step_folders()]
        return sorted((saved for saved in found if saved is not None), key=lambda saved: saved.step)

    def _step_folders(self) -> list[Path]:
        folder = self.path / CHECKPOINTS
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        return [path for path in paths if _STEP.fullmatch(path.name)]

    def newest(self) -> SavedStep | None:
        """Return the newest whole checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def to_go_on_from(self) -> SavedStep | None:
        """Return the newest whole checkpoint; None: none was saved yet.

        Raises:
            TrainingError: there are some, and none is whole: the run would begin anew, and save its own over them.
        """
        newest, folders = self.newest(), self._step_folders()
        if newest is None and folders:
            raise TrainingError(
                f"No checkpoint in {self.path / CHECKPOINTS} is whole: in {folders[-1].name}, "
                f"{TRAINER_FOLDER}/{STATE_FILE} is broken, or a file that it lists is missing or cut off. Copy them "
                f"again; or remove the folder {CHECKPOINTS}, and the run begins anew."
            )
        return newest

    def best(self) -> SavedStep | None:
        """Return the whole checkpoint of the lowest validation loss, if any was measured.

        A run may go on with other rows to validate on. Then only those count that were measured on the newest ones.
        """
        measured = [saved for saved in self.checkpoints() if saved.validation_loss is not None]
        # Earlier versions did not say on which.
        rows = {None, *(saved.state.get("validated_on") for saved in measured[-1:])}
        measured = [saved for saved in measured if saved.state.get("validated_on") in rows]
        return min(measured, key=lambda saved: saved.validation_loss, default=None)  # type: ignore[arg-type,return-value]

    def keep(self, last: int) -> None:
        """Delete all checkpoints but the last ones and the best, and point the links to the newest and the best."""
        saved, best = self.checkpoints(), self.best()
        for name, target in ((LATEST, saved[-1]), (BEST, best)):
            if target is not None:
                self._remove_copy(name, saved)
                self._link(name, target.path)
        for old in saved[:-last]:
            if best is None or old.step != best.step:
                with contextlib.suppress(PermissionError):  # on Windows while somebody reads it: until the next save
                    atomic.remove_folder(old.path)

    def _remove_copy(self, name: str, saved: list[SavedStep]) -> None:
        """Delete the copy of a checkpoint that a link became where the run was copied by what follows links (scp -r):
        no rename puts a link in the place of a folder, which would stay the best or the newest of that day.
        """
        folder = self.path / name
        if folder.is_symlink() or not folder.is_dir():
            return
        state = Path(TRAINER_FOLDER, STATE_FILE)
        with contextlib.suppress(OSError):
            if (folder / state).read_bytes() in [(one.path / state).read_bytes() for one in saved]:
                atomic.remove_folder(folder)

    def _link(self, name: str, target: Path) -> None:
        staged = self.path / f".{name}"
        # Windows gives links only to some users; the checkpoints have their own names all the same.
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
            staged.symlink_to(target.relative_to(self.path), target_is_directory=True)
            if sys.platform == "win32":  # where no rename replaces a folder, nor a link to one
                (self.path / name).unlink(missing_ok=True)
            os.replace(staged, self.path / name)

    def remove_leftovers(self) -> None:
        """Delete what a killed process left half written; only under `lock`."""
        for path in (self.path / CHECKPOINTS).glob(".edgelm-tmp-*"):
            shutil.rmtree(path, ignore_errors=True)


def _saved_step(path: Path) -> SavedStep | None:
    """Read a checkpoint's state, and check that the files it lists are there in full."""
    file = path / TRAINER_FOLDER / STATE_FILE
    try:
        state = {schema_version.KEY: STATE_VERSION} | json.loads(file.read_text(encoding="utf-8"))  # once it had none
        if other := schema_version.other_version(state, STATE_VERSION, f"Remove {path} to go on from another"):
            raise TrainingError(f"{file} {other}")
        sizes: dict[str, int] = state["files"]
        whole = all((path / name).stat().st_size == size for name, size in sizes.items())
        loss = state.get("validation_loss")
        is_own = isinstance(state["step"], int) and state["step"] == int(path.name.removeprefix("step-"))
        is_own = is_own and (loss is None or isinstance(loss, float))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return SavedStep(step=state["step"], path=path, state=state) if whole and is_own else None

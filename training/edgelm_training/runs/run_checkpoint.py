"""Saving and restoring a run: weights for export, and trainer/ with all that going on needs.

trainer/ holds safetensors files with each trained parameter and the optimizer's tensors, written and read in parallel
by torch.distributed.checkpoint, so that a run goes on with any number of processes, whole or sharded models alike; and
state.json with the numbers. There is no pickle in it. Random numbers need no state: each step seeds them anew.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from edgelm.errors import TrainingError
from edgelm.files import atomic, schema_version
from edgelm_training.runs import optimizer as optimizer_state
from edgelm_training.runs.distributed import Workers, whole
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.run_folder import STATE_FILE, STATE_VERSION, TRAINER_FOLDER, RunFolder, SavedStep


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The tensors of a run: where they live, and how they are named in a checkpoint."""

    recipe: Recipe
    optimizers: list[Optimizer]
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """Return every trained parameter, every buffer that is saved, and the optimizers' tensors."""
        model = self.recipe.model
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        saved = {f"model.{name}": value for name, value in model.state_dict().items() if name not in frozen}
        state = optimizer_state.state_tensors(model, self.optimizers)
        return saved | {f"optimizer.{name}": value for name, value in state.items()}


def save_run(state: RunState, run: RunFolder, numbers: dict[str, Any], workers: Workers) -> None:
    """Save a checkpoint, whole or not at all; every process must call this.

    numbers: what state.json holds besides; `step` names the folder.

    Raises:
        TrainingError: the disk is full or refuses. The older checkpoints are as they were.
    """
    weights = _whole_weights(state.recipe.model, workers)
    try:
        with contextlib.ExitStack() as stack:
            target = run.checkpoint_path(numbers["step"])
            staging = stack.enter_context(atomic.replace_folder(target)) if workers.is_main else None
            folder = workers.on_main(lambda: staging)
            assert folder is not None  # the main process has made it
            if workers.is_main:
                state.recipe.write_weights(weights, folder)
                (folder / TRAINER_FOLDER).mkdir()
            workers.barrier()
            _write_tensors(state.tensors(), folder / TRAINER_FOLDER, workers)
            if workers.is_main:
                files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
                values = {schema_version.KEY: STATE_VERSION} | numbers
                text = json.dumps(values | {"scaler": state.scaler.state_dict(), "files": files}, indent=2)
                (folder / TRAINER_FOLDER / STATE_FILE).write_text(text + "\n", encoding="utf-8", newline="\n")
    except (OSError, SafetensorError, CheckpointException) as error:
        newest = run.newest()
        raise TrainingError(
            f"Cannot save step {numbers['step']} in {run.path}: {_reason(error)}. "
            + (f"The last good checkpoint is {newest.path}. " if newest else "No checkpoint was saved before. ")
            + "Make room, and go on with --resume."
        ) from error
    workers.barrier()


def restore_run(state: RunState, saved: SavedStep, workers: Workers) -> None:
    """Read a checkpoint into the model and the optimizers, whatever number of processes wrote it.

    Raises:
        TrainingError: it is of another model or optimizer, or cannot be read.
    """
    reader, model = dcp.HuggingFaceStorageReader(str(saved.path / TRAINER_FOLDER)), state.recipe.model
    try:
        with _quiet():
            kept = _shapes_in(reader)
            with_state = {name.rpartition(".")[0] for name in kept}
            stateful = {one for name, one in model.named_parameters() if f"optimizer.{name}" in with_state}
            optimizer_state.initialize_state(state.optimizers, stateful)
            tensors = state.tensors()
            _check_fit(tensors, kept, saved)
            dcp.load(tensors, storage_reader=reader, no_dist=workers.world_size == 1)
    except (OSError, SafetensorError, CheckpointException, ValueError, RuntimeError, LookupError, TypeError) as error:
        raise TrainingError(
            f"Cannot go on from {saved.path}: {_reason(error)}. Remove that folder to go on from an older one."
        ) from error
    # A run that was in another precision so far has no scale yet.
    if state.scaler.is_enabled() and saved.state["scaler"]:
        state.scaler.load_state_dict(saved.state["scaler"])


def _shapes_in(reader: dcp.HuggingFaceStorageReader) -> dict[str, list[int]]:
    entries = reader.read_metadata().state_dict_metadata
    return {name: list(entry.size) for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _check_fit(tensors: dict[str, Tensor], kept: dict[str, list[int]], saved: SavedStep) -> None:
    """Refuse the checkpoint of a model or an optimizer that was changed since, in either direction."""
    now = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if differing := [name for name in now | kept if now.get(name) != kept.get(name)]:
        name = differing[0]
        raise TrainingError(
            f"{saved.path} is of another model or optimizer: {name} is {kept.get(name, 'missing')} there and "
            f"{now.get(name, 'missing')} now; {len(differing)} such tensors. Go on with the code and the settings that "
            "it was saved with, or begin another run: -o FOLDER."
        )


def _whole_weights(model: nn.Module, workers: Workers) -> dict[str, Tensor]:
    """Gather the weights, one tensor after another, in the main process's memory."""
    weights = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor).detach().cpu()
        if workers.is_main:
            weights[name] = full
    return weights


def _write_tensors(tensors: dict[str, Tensor], folder: Path, workers: Workers) -> None:
    with _quiet():
        dcp.save(
            tensors,
            storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=workers.world_size == 1,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.distributed.checkpoint's warning that there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _reason(error: BaseException) -> str:
    """Find what stands behind the summary that torch.distributed.checkpoint makes of the processes' errors."""
    if isinstance(error, CheckpointException) and error.failures:
        return str(next(iter(error.failures.values()))[0])
    return str(error)

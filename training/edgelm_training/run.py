"""One run, from its settings to its end: processes, folder and recipe brought together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from edgelm.errors import ConfigError, OutOfMemoryError, TrainingError
from edgelm_training.runs.device import choose_device
from edgelm_training.runs.distributed import Workers, launched_workers, process_group
from edgelm_training.runs.launcher import launched_restarts
from edgelm_training.runs.recipe import Recipe
from edgelm_training.runs.run_folder import RunFolder
from edgelm_training.runs.train_log import Reporter, SilentReporter
from edgelm_training.settings.schedule import warmup_or_usual
from edgelm_training.settings.settings import checked_settings, read_settings, to_toml
from edgelm_training.settings.train_config import TrainConfig
from edgelm_training.trainer import Outcome, Trainer

Config = TypeVar("Config", bound=TrainConfig)

# What a run cannot change on its way: the steps behind it were made with it.
FIXED = ("seed", "sequence_length", "global_batch_size", "optimizer", "qat")
# What is read of files, which may be in another place when a run goes on.
_READ = ("data", "validation_data", "model", "teacher")


def execute_run(
    config_class: type[Config],
    settings: Mapping[str, Any],
    build: Callable[[Config, Reporter], tuple[Config, Recipe]],
    *,
    resume: bool,
    fixed: tuple[str, ...],
    reporter: Reporter | None,
) -> Outcome:
    """Train what `build` makes of the settings, or go on with the run in their output folder.

    settings: those that the user gave. When resuming they change the run's own, but for those in FIXED and in `fixed`.
    build: turns the config into one in which every setting has its value, and the recipe, and says what it does.
    resume: go on from the newest whole checkpoint; a run that saved none begins. Implied where torchrun starts the
    processes again after a loss.

    Raises:
        ConfigError: there is no such setting, or it has a value of another type or outside its range.
        OutOfMemoryError: there is no memory for the model, or for a step of it.
        TrainingError: the folder holds another run or something else, another process trains in it, or a fixed setting
            would change; and as `Trainer.train`.
        EdgeLMError: as `build`.
    """
    settings, reporter = checked_settings(settings, config_class), reporter or SilentReporter()
    fixed = (*FIXED, *fixed)
    workers = launched_workers()
    resume = resume or launched_restarts() > 0
    run = RunFolder(settings.get("output", config_class.output))
    goes_on = resume and run.config_file.exists()  # then the run has those settings that are not given
    config = _merged(run, config_class, settings, fixed) if goes_on else config_class(**settings)
    with process_group(workers, choose_device(config, workers.local_rank).device), _locked(run, workers):
        # All processes read the run's settings here, and none may write before all have: hence the barrier.
        resuming = workers.on_main(lambda: _opened(run, resume))
        if resuming:
            config = _merged(run, config_class, settings, fixed)
            _check_paths(run, config, settings)
        elif resume:
            reporter.note(f"There is no run in {run.path} to go on with: one begins.")
        workers.barrier()
        device = choose_device(config, workers.local_rank)
        with _memory_errors_told(workers):
            config, recipe = build(config, reporter)
            trainer = Trainer(recipe, config, run=run, workers=workers, device=device, reporter=reporter)
            # A run that cannot go on as asked, or has nothing left to do, keeps its settings.
            trainer.restore()
            if not trainer.is_done:
                workers.on_main(lambda: run.write_config(to_toml(config)))
            return trainer.train()


@contextlib.contextmanager
def _memory_errors_told(workers: Workers) -> Iterator[None]:
    """Raise OutOfMemoryError where the block has no memory; of CPUs and Apple's GPUs torch says it in words alone."""
    try:
        yield
    except OutOfMemoryError:  # it says by itself what takes less
        raise
    except (MemoryError, RuntimeError) as error:
        told = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
            words in str(error) for words in ("DefaultCPUAllocator", "out of memory")
        )
        if not told or workers.local_rank:  # whose errors are not shown where they are a user's
            raise
        reason = str(error).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2].rstrip(".")
        raise OutOfMemoryError(
            f"There is no memory left to train in: {reason or 'it is not said for what'}. Less at once takes less: "
            "--micro-batch-size 1, --activation-checkpointing, or in another run shorter rows (--sequence-length) or "
            "a smaller model. Go on with --resume."
        ) from error


def _opened(run: RunFolder, resume: bool) -> bool:
    """Make the run's folder ready, and tell whether there is a run in it."""
    run.open(resume=resume)
    run.remove_leftovers()
    return run.config_file.exists()


@contextlib.contextmanager
def _locked(run: RunFolder, workers: Workers) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        workers.on_main(lambda: stack.enter_context(run.lock()))
        yield


def _merged(run: RunFolder, config_class: type[Config], settings: Mapping[str, Any], fixed: tuple[str, ...]) -> Config:
    """Return the run's own settings, changed by those that were given."""
    try:
        own = config_class(**read_settings(run.config_file, config_class))
    except ConfigError as error:
        raise TrainingError(
            f"{error} The run cannot go on without its settings, nor by another command than the one that began it."
        ) from error
    for name in (name for name in fixed if name in settings):
        value, of_run = settings[name], getattr(own, name)
        if name == "init" and value and of_run and os.path.realpath(value) == os.path.realpath(of_run):
            continue
        for field, given, began in _differences(name, value, of_run):
            raise TrainingError(
                f"{field} is {given!r}; the run in {run.path} began with {began!r}, and cannot change it. "
                "Leave it out, or begin another run: -o FOLDER."
            )
    if own.max_steps is not None and own.warmup_steps == warmup_or_usual(None, own.max_steps):
        own = replace(own, warmup_steps=None)  # nobody set it; another length of the run has another
    changes = {name: value for name, value in settings.items() if name not in fixed}
    return replace(own, **changes)


def _check_paths(run: RunFolder, config: TrainConfig, settings: Mapping[str, Any]) -> None:
    """Refuse paths of the run's own settings that lead nowhere from here, as they may have from where it began."""
    for name in (name for name in _READ if name not in settings):
        value = getattr(config, name, None)
        for path in [value] if isinstance(value, str) else value if isinstance(value, tuple) else []:
            if not (Path(path).is_absolute() or Path(path).exists() or set(path) & set("*?[")):
                raise TrainingError(
                    f"{name} of the run in {run.path} is {path!r}, and there is none here: its paths are relative to "
                    f"the folder that it began in. Go on from there, or name it anew: --{name.replace('_', '-')} PATH."
                )


def _differences(name: str, given: Any, own: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield where a setting, of a table a field that was given, is another than the run's own: its name and both."""
    if isinstance(given, Mapping) and isinstance(own, Mapping):
        for key, value in given.items():
            yield from _differences(f"{name}.{key}", value, own.get(key))
    elif given != own and not (isinstance(given, tuple) and list(given) == own):  # TOML has lists
        yield name, given, own

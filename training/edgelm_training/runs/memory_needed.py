"""The least memory that a run needs, checked before its model is made: Linux kills a process that takes more."""

from __future__ import annotations

from edgelm.config import ModelConfig
from edgelm.errors import OutOfMemoryError
from edgelm.memory.available_memory import available_memory
from edgelm_training.runs.device import choose_device
from edgelm_training.runs.distributed import launched_workers
from edgelm_training.settings.train_config import TrainConfig

_KEPT = 2  # bytes of a number that is kept for the backward pass: bfloat16, the least of all precisions
FROZEN = 4  # bytes of a parameter: float32 weights
LEARNING = 12  # weights, gradients, and at least one average of the optimizer (Muon's; AdamW has two)


def check_memory(params: int, config: TrainConfig, way_out: str, *, bytes_each: int = LEARNING) -> None:
    """Check that a model of so many parameters, `bytes_each` of them, fits the memory that is free.

    way_out: the end of the error. Of a GPU's memory nobody asks, nor of shares of a model on several devices.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    free, what = _free(config), "its weights"
    if bytes_each > FROZEN:
        what += ", their gradients and what the optimizer keeps of them"
    if free is not None and bytes_each * params > free:
        raise OutOfMemoryError(
            f"A model of {params:,} parameters takes {bytes_each * params / 1e9:.1f} GB to train: {what}. "
            f"{free / 1e9:.1f} GB are free. {way_out}"
        )


def check_row_memory(model: ModelConfig, length: int, config: TrainConfig) -> None:
    """Check that a row of `length` tokens fits the memory, as rows are never split: what enters each layer, the logits
    and their gradient. That is the least, and a small part of what is kept without --activation-checkpointing.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    free = _free(config)
    needed = _KEPT * length * (model.num_hidden_layers * model.hidden_size + 2 * model.vocab_size)
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"sequence_length is {length:,}: a row of so many tokens takes over {needed / 1e9:.1f} GB to train on. "
            f"{free / 1e9:.1f} GB are free. Shorten the rows: --sequence-length."
        )


def _free(config: TrainConfig) -> int | None:
    """Return the free memory of the device that trains; None where it is not known."""
    if config.parallel == "fsdp" or choose_device(config, launched_workers().local_rank).device.type != "cpu":
        return None
    return available_memory(with_swap=True)

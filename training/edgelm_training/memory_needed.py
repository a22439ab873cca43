"""The memory that a run needs at least, looked for before its model is made: Linux ends without a word who fills it."""

from __future__ import annotations

from edgelm.errors import OutOfMemoryError
from edgelm.memory.available_memory import available_memory
from edgelm_training.device import choose_device
from edgelm_training.distributed import launched_workers
from edgelm_training.train_config import TrainConfig

FROZEN = 4  # bytes of a parameter: float32 weights
LEARNING = 12  # and as many gradients, and the one or two averages of an optimizer (Muon's, AdamW's)


def check_memory(params: int, config: TrainConfig, way_out: str, *, bytes_each: int = LEARNING) -> None:
    """Check that a model of so many parameters, `bytes_each` of them, fits the memory that is free.

    way_out: the end of the error. Of a GPU's memory nobody asks, nor of shares of a model on several devices.

    Raises:
        OutOfMemoryError: it does not fit.
    """
    if config.parallel == "fsdp" or choose_device(config, launched_workers().local_rank).device.type != "cpu":
        return
    free, what = available_memory(with_swap=True), "its weights"
    if bytes_each > FROZEN:
        what += ", their gradients and what the optimizer keeps of them"
    if free is not None and bytes_each * params > free:
        raise OutOfMemoryError(
            f"A model of {params:,} parameters takes {bytes_each * params / 1e9:.1f} GB to train: {what}. "
            f"{free / 1e9:.1f} GB are free. {way_out}"
        )

"""Micro-batches: how a process goes through its share of a step, so that what is computed at once fits its memory."""

from __future__ import annotations

from edgelm.config import ModelConfig
from edgelm_training.runs.device import Device
from edgelm_training.settings.settings import SettingError
from edgelm_training.settings.train_config import TrainConfig

# Tokens at once on a device, where the config does not say: beyond that, larger pieces are no faster.
_MOST_TOKENS = 8192
# A CPU shares its memory with all other programs. For the backward pass about so many bytes are kept of a token, for
# each channel of each layer (of SmolLM2-135M 2.2 to 2.5 MB in float32, 1.2 to 1.5 in bfloat16).
_ACTIVATION_BYTES, _BYTES_OF_CHANNEL = 4 << 30, {"fp32": 150, "bf16": 75, "fp16": 75}


def piece_tokens(shape: ModelConfig | None, config: TrainConfig, device: Device) -> int:
    """Return how many tokens are computed at once where the config does not say; shape: the model's, where known."""
    if device.device.type == "cuda" or config.activation_checkpointing or shape is None:
        return _MOST_TOKENS
    channels = shape.num_hidden_layers * shape.hidden_size
    return min(_MOST_TOKENS, _ACTIVATION_BYTES // (_BYTES_OF_CHANNEL[device.precision] * channels))


def rows_of_step(config: TrainConfig, world_size: int) -> int | None:
    """Return the rows of a step, where the config says them in one way or another."""
    if config.global_batch_size is not None or config.micro_batch_size is None or config.grad_accum_steps is None:
        return config.global_batch_size
    return config.micro_batch_size * config.grad_accum_steps * world_size


def split_share(config: TrainConfig, world_size: int, tokens: int) -> int:
    """Return the number of equal pieces that each process's share of a step is split into.

    tokens: how many a piece may have where the config does not say; a row is never split.

    Raises:
        ConfigError: the rows do not split evenly.
    """
    rows = config.known("global_batch_size")
    if rows % world_size:
        raise SettingError(f"global_batch_size is {rows}; it must be a multiple of the {world_size} processes.")
    share = rows // world_size
    if config.grad_accum_steps is not None:
        if share % config.grad_accum_steps:
            raise SettingError(
                f"grad_accum_steps is {config.grad_accum_steps}; it must divide the {share} rows of a process's step."
            )
        if config.micro_batch_size is not None and config.micro_batch_size * config.grad_accum_steps < share:
            raise SettingError(
                f"grad_accum_steps is {config.grad_accum_steps} and micro_batch_size {config.micro_batch_size}, which "
                f"hold fewer than the {share} rows of a process's step. Leave one of them out."
            )
        return config.grad_accum_steps
    most = config.micro_batch_size or max(1, tokens // config.known("sequence_length"))
    return next(pieces for pieces in range(1, share + 1) if share % pieces == 0 and share // pieces <= most)

"""The processes that train together: torch.distributed is the engine, under torchrun; one process needs none of it.

Nor does it import what shards tensors, which takes half as long as torch itself.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from edgelm.errors import EdgeLMError, TrainingError
from edgelm_training.model import Block
from edgelm_training.runs.launcher import launched_place, launched_restarts
from edgelm_training.settings.settings import SettingError

T = TypeVar("T")

# A launcher starts all processes at once; only importing torch can keep one of them back.
_CONNECT_TIMEOUT = timedelta(minutes=2)
# The others wait while one process writes a checkpoint's weights.
_COMPUTE_TIMEOUT = timedelta(hours=1)
_LET_GO_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This process among those that train one model."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes log and checkpoints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: T) -> list[T]:
        """Return each process's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` in the main process, and return its result in all of them.

        Its error ends all processes: the main one raises it, the others leave without a word.
        """
        if self.world_size == 1:
            return action()
        outcome: list[T | EdgeLMError | None] = [None]
        if self.is_main:
            try:
                outcome = [action()]
            except EdgeLMError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome)
        if isinstance(outcome[0], EdgeLMError):
            if self.is_main:
                raise outcome[0]
            sys.exit(1)
        return outcome[0]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def launched_workers() -> Workers:
    """Read from the environment where torchrun, or another launcher with its variables, has put this process."""
    rank, world_size, local_rank = launched_place()
    return Workers(rank=rank, world_size=world_size, local_rank=local_rank)


@contextlib.contextmanager
def process_group(workers: Workers, device: torch.device) -> Iterator[None]:
    """Connect the processes for the block: NCCL between GPUs, gloo between CPUs.

    Raises:
        TrainingError: the processes do not meet, or one of them ends before the block does.
    """
    if workers.world_size == 1:
        yield
        return
    _connect(device)
    try:
        yield
    except RuntimeError as error:
        # By gloo's files, and NCCL's word for it: its other errors, such as of two processes on one GPU, say more.
        told = str(error).replace("\\", "/")  # Windows' paths
        if not any(words in told for words in ("/gloo/", "ncclRemoteError")):
            raise
        reason = str(error).partition("\n")[0].rpartition("] ")[2].partition(". ")[0]
        raise TrainingError(
            f"Process {workers.rank} of {workers.world_size} lost another one: {reason}. What that one said, or a lack "
            "of memory, is why. Go on with --resume."
        ) from error
    finally:
        # Destroying the group waits for gloo's thread while it holds Python's lock, which that thread needs to drop its
        # last message (seen with torch 2.13): let it finish first.
        time.sleep(_LET_GO_SECONDS)
        dist.destroy_process_group()


def _connect(device: torch.device) -> None:
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=_CONNECT_TIMEOUT))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            # torchrun has one store for all its restarts (torch 2.13): without a prefix, a process could read there at
            # which address another one listened before, and wait for it.
            store=dist.PrefixStore(f"start {launched_restarts()}", store),
            rank=rank,
            world_size=world_size,
            timeout=_CONNECT_TIMEOUT,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:  # torch.distributed's own, gloo's and NCCL's; a variable is missing
        rank, world_size, host, port = (
            os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        )
        reason = str(error).partition("\n")[0]
        raise TrainingError(
            f"Process {rank} of {world_size} did not meet the others at {host}:{port}: {reason} Are all of them "
            "started, with the same address, and does it answer from this machine?"
        ) from error
    store.set_timeout(_COMPUTE_TIMEOUT)
    everybody = dist.group.WORLD
    assert everybody is not None  # init_process_group has made it
    everybody.set_timeout(_COMPUTE_TIMEOUT)


def distribute(model: nn.Module, parallel: str, workers: Workers, device: torch.device) -> nn.Module:
    """Return the model to call: wrapped by DDP, or sharded in place by FSDP2, block by block (arXiv:2304.11277).

    `model` keeps its parameters' names; with FSDP2 they become DTensors.

    Raises:
        ConfigError: FSDP is asked for, but there is one process.
    """
    if parallel == "fsdp" and workers.world_size == 1:
        raise SettingError(
            "parallel is 'fsdp', but there is one process. Start several (torchrun --nproc-per-node N …), or say "
            "--parallel auto, with which a run that several began goes on too."
        )
    if workers.world_size == 1:
        return model
    if parallel == "fsdp":
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (workers.world_size,))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    # Buffers are constants, such as tables of positions, the same in all processes: those of 131,072 positions took
    # 0.4 s a pass to be sent around. Older versions of torch have another name for that.
    known = inspect.signature(DistributedDataParallel).parameters
    sent_around = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sent_around: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(model, **options)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the Transformer's blocks in a model."""
    return [module for module in model.modules() if isinstance(module, Block)]


@contextlib.contextmanager
def gradient_sync(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Let the processes exchange gradients in the backward pass of the block, or let them only add up."""
    if isinstance(model, DistributedDataParallel):
        with contextlib.nullcontext() if enabled else model.no_sync():
            yield
        return
    if dist.is_initialized():  # by a program around this too, for a model that is in one process alone
        from torch.distributed.fsdp import FSDPModule

        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(enabled)
    yield


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as one; every process must call this."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

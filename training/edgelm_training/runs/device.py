"""The device that trains and the number formats that it is fast in."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass

import torch

from edgelm.errors import ConfigError
from edgelm.runtime.cpu import cpu_features, usable_cores
from edgelm_training.runs.launcher import launched_here
from edgelm_training.settings.train_config import TrainConfig

# The floats that a model may compute with, or be stored in, by the names of precisions.
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Device:
    """A torch device and the precision of the matrix products on it; weights and optimizer stay in float32."""

    device: torch.device
    precision: str

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix products."""
        return TYPES[self.precision]

    @property
    def emulates(self) -> bool:
        """Whether it is a CPU whose products in the precision are emulated: they take many times as long as float32."""
        if self.device.type != "cpu" or self.precision == "fp32":
            return False
        return emulates_bf16(self.device) if self.precision == "bf16" else not _has_any("avx512_fp16", "amx_fp16")

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Compute matrix products of the block in the precision, and what needs range in float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps small float16 gradients from vanishing; of other precisions it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def choose_device(config: TrainConfig, local_rank: int = 0) -> Device:
    """Choose the device and the precision, and set torch's threads and determinism for them.

    local_rank: which of the devices of this machine, where the config does not name one.

    Raises:
        ConfigError: the device does not exist here, or `compile` has no compiler.
    """
    device = _device(config.device, local_rank)
    precision = config.precision if config.precision != "auto" else _fast_precision(device)
    if config.compile and device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise ConfigError("compile is on, but no C++ compiler is here, which torch.compile needs on CPUs: install g++.")
    torch.set_num_threads(config.threads or _own_cores())
    torch.use_deterministic_algorithms(config.deterministic)
    return Device(device=device, precision=precision)


def _own_cores() -> int:
    """Count the cores that are for this process: its part of the launcher's, or fewer that it is pinned to."""
    # Two processes with two threads each took 27 times as long for a step as with one, on two busy cores.
    processes = launched_here()
    return usable_cores() if processes == 1 else max(1, min(usable_cores(), usable_cores(os.getppid()) // processes))


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = accelerator.type if accelerator is not None else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = device if device.index is not None else torch.device("cuda", local_rank)
        torch.empty(0, device=device).cpu()  # which "meta" has no numbers for
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch says it in any of these ways
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".!")  # of Apple's it lists 40 backends behind it
        raise ConfigError(f"device is {name!r}, which is not here: {reason}. Use 'auto' or 'cpu'.") from error
    return device


def _fast_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Measured on Zen 4: 1.9 times the tokens of fp32.
    return "bf16" if device.type == "cpu" and not emulates_bf16(device) else "fp32"


def emulates_bf16(device: torch.device) -> bool:
    """Tell whether the device is a CPU without instructions for bfloat16: products in it are many times slower."""
    return device.type == "cpu" and not _has_any("avx512_bf16", "amx_bf16")


def _has_any(*instructions: str) -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # before 2.11; Linux has the same names
        return not frozenset(instructions).isdisjoint(cpu_features() or ())
    features = torch.cpu.get_capabilities()
    return any(features.get(name) for name in instructions)

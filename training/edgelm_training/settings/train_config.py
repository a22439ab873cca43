"""TrainConfig: how a model is trained, whatever the recipe; each field is also a line of TOML and a flag."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from edgelm.architecture.quantization_recipe import QUANTIZED
from edgelm_training.settings.schedule import SCHEDULES
from edgelm_training.settings.settings import SettingError, setting

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PARALLEL = ("auto", "ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop. None: the recipe chooses (`pretrain`: by published scaling rules).

    A step trains on global_batch_size rows of sequence_length tokens, split evenly over the processes; each of them
    goes through its share in pieces of at most micro_batch_size rows and adds up their gradients.

    Raises:
        SettingError: a value is outside its range; the message names the setting, the value and the range.
    """

    output: str = setting("run", "The run's folder: settings, log and checkpoints.")
    seed: int = setting(0, "What the weights, the order of the data and the samples are drawn by.")
    max_steps: int | None = setting(
        None, "Train for this many steps.  [default: 20 tokens a parameter; with --init, once through the data]"
    )
    sequence_length: int | None = setting(None, "Tokens in a row.  [default: 512 to 2048, by the model's size]")
    global_batch_size: int | None = setting(None, "Rows in a step, over all processes.  [default: by the compute]")
    micro_batch_size: int | None = setting(
        None,
        "Rows at once on a device, at most; memory grows with it.  [default: of 8192 tokens, on a CPU in some 4 GB]",
    )
    grad_accum_steps: int | None = setting(None, "Pieces that a process splits its share of a step into.")

    learning_rate: float | None = setting(None, "The peak, after the warm-up.  [default: by the compute]")
    schedule: str = setting("cosine", "How the learning rate falls after the warm-up.", choices=tuple(SCHEDULES))
    warmup_steps: int | None = setting(None, "Steps in which the learning rate rises.  [default: 2 % of max_steps]")
    decay_fraction: float = setting(0.2, "With wsd: the last part of the run, in which the learning rate falls.")
    min_learning_rate_ratio: float = setting(0.1, "The last learning rate, as a part of the peak.")
    optimizer: str = setting(
        "adamw", "muon: for the matrices of the blocks, with adamw for the rest.", choices=OPTIMIZERS
    )
    weight_decay: float = setting(0.1, "For matrices; norms, biases and embeddings have none.")
    beta1: float = setting(0.9, "AdamW's decay of the gradient's mean.")
    beta2: float = setting(0.95, "AdamW's decay of the gradient's square.")
    adam_epsilon: float = setting(1e-8, "AdamW's smallest denominator.")
    momentum: float = setting(0.95, "Muon's momentum.")
    grad_clip: float = setting(1.0, "The largest gradient norm; 0: do not clip.")
    z_loss: float = setting(0.0, "Weight of the penalty on log(Z)², which keeps logits small; 1e-4 is usual.")

    qat: str | None = setting(
        None,
        f"Quantization-aware: for this precision of `edgelm export` ({', '.join(QUANTIZED)}), or a recipe file.",
    )
    teacher: str | None = setting(None, "Learn the next-token probabilities of this checkpoint folder (distillation).")
    teacher_weight: float = setting(1.0, "Share of the teacher in the loss; the rest is the text's own.")
    teacher_temperature: float = setting(1.0, "Both models' logits are divided by it before they are compared.")

    device: str = setting("auto", "cpu, cuda, cuda:1, mps.  [auto: the best there is]")
    precision: str = setting(
        "auto", "The type of matrix products; weights stay in fp32.  [auto: bf16 where it is fast]", choices=PRECISIONS
    )
    parallel: str = setting(
        "auto", "Under torchrun: each process has the model, or (fsdp) a shard of it.  [auto: ddp]", choices=PARALLEL
    )
    compile: bool = setting(False, "Compile the model with torch.compile; on CPUs this needs a C++ compiler.")
    activation_checkpointing: bool = setting(False, "Less memory for a third more time.")
    deterministic: bool = setting(False, "The same bits from the same seed on a GPU too; slower.")
    threads: int | None = setting(None, "CPU threads of a process.  [default: its share of the physical cores]")

    save_every: int = setting(250, "Save a checkpoint each N steps (and at the end).")
    keep_last: int = setting(3, "Keep this many checkpoints, and the best by validation loss.")
    eval_every: int = setting(250, "Measure the validation loss at first, each N steps and before each save; 0: never.")
    eval_rows: int = setting(64, "Rows of validation data to measure on.")
    sample_every: int = setting(500, "Let the model write each N steps and at the end; 0: never.")
    sample_prompts: tuple[str, ...] = setting(("",), "What it continues; may be given several times.")
    sample_tokens: int = setting(48, "Tokens of a sample.")
    sample_temperature: float = setting(0.8, "0 takes the likeliest token.")
    log_every: int = setting(10, "Where standard error is no terminal: a line each N steps.")
    tensorboard: bool = setting(True, "Write TensorBoard's files where it is installed.")

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise SettingError(f"{name} is {value}; it must be {_range(low, high)}.")
        for name, allowed in ((field.name, field.metadata.get("choices")) for field in fields(self)):
            if allowed and getattr(self, name) not in allowed:
                raise SettingError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}.")
        if not self.output:
            raise SettingError("output is empty; name the folder of the run.")
        if self.warmup_steps is not None and self.max_steps is not None and self.warmup_steps > self.max_steps:
            raise SettingError(f"warmup_steps is {self.warmup_steps}; it must be at most max_steps ({self.max_steps}).")

    def idle(self) -> dict[str, str]:
        """Name the settings that change nothing beside these others, each with what it is for."""
        found = {}
        if self.schedule != "wsd":
            found["decay_fraction"] = "--schedule wsd"
        if self.schedule == "constant":
            found["min_learning_rate_ratio"] = "a --schedule that falls"
        if self.optimizer != "muon":
            found["momentum"] = "--optimizer muon"
        if self.teacher is None:
            found |= dict.fromkeys(("teacher_weight", "teacher_temperature"), "--teacher FOLDER")
        if self.eval_every == 0:
            found["eval_rows"] = "a run that validates, which --eval-every 0 does not"
        if self.sample_every == 0:
            samples = ("sample_prompts", "sample_tokens", "sample_temperature")
            found |= dict.fromkeys(samples, "samples, which --sample-every 0 leaves out")
        return found

    def known(self, name: str) -> Any:
        """Return a setting that the recipe must have chosen by now.

        Raises:
            SettingError: it has no value.
        """
        value = getattr(self, name)
        if value is None:
            raise SettingError(f"{name} is not set.")
        return value


def _range(low: float, high: float) -> str:
    return f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:.10g}"


_COUNT = (1, math.inf)
_AMOUNT = (0, math.inf)
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32),
    "max_steps": _COUNT,
    "sequence_length": _COUNT,
    "global_batch_size": _COUNT,
    "micro_batch_size": _COUNT,
    "grad_accum_steps": _COUNT,
    "learning_rate": (1e-12, 10),
    "warmup_steps": _AMOUNT,
    "decay_fraction": (0, 1),
    "min_learning_rate_ratio": (0, 1),
    "weight_decay": (0, 1000),
    "beta1": (0, 0.99999),
    "beta2": (0, 0.99999),
    "adam_epsilon": (0, 10),
    "momentum": (0, 0.99999),
    "grad_clip": _AMOUNT,
    "z_loss": (0, 1000),
    "teacher_weight": (0, 1),
    "teacher_temperature": (0.01, 100),
    "threads": (1, 1024),
    "save_every": _COUNT,
    "keep_last": _COUNT,
    "eval_every": _AMOUNT,
    "eval_rows": _COUNT,
    "sample_every": _AMOUNT,
    "sample_tokens": _COUNT,
    "sample_temperature": (0, 100),
    "log_every": _COUNT,
}

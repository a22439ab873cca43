"""Recipe: what is trained, on what, and towards what; the trainer does the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from edgelm_training.rows.batches import Batch
from edgelm_training.runs.loss import LossSums, count_targets


class Rows(Protocol):
    """An endless sequence of rows of training data, a pure function of the row's number."""

    rows_per_epoch: int

    def batch(self, first: int, count: int) -> Batch:
        """Return rows first to first + count - 1."""

    def describe(self, row: int) -> str:
        """Name the documents of a row."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text that the model wrote while it was trained."""

    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what, and towards what.

    model: its parameters that require a gradient are trained, saved and restored.
    loss: called with the model (wrapped for several processes) and a batch on the model's device; returns sums.
    count: how many units of a batch (on the CPU) the sums are over.
    write_weights: writes what a user takes from a checkpoint into an empty folder, from `model.state_dict()` with
        whole tensors on the CPU.
    sample: writes texts at a step, the same ones for the same weights and step. None: never.
    data_fingerprint: of the training data; a run does not go on with other data.
    texts_each: how many texts of up to sequence_length tokens one of the rows is, for its share of the memory.
    flops_per_token: of a forward and a backward pass. None: unknown, and no share of the device's peak is shown.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Batch], LossSums]
    training_rows: Rows
    validation_rows: Rows | None
    data_fingerprint: str
    write_weights: Callable[[dict[str, Tensor], Path], None]
    count: Callable[[Batch], int] = count_targets
    sample: Callable[[int], list[Sample]] | None = None
    texts_each: int = 1
    flops_per_token: float | None = None

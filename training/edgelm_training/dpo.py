"""Direct preference optimization: the better answer becomes likelier than the worse one (arXiv:2305.18290)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm_training.rows.batches import NO_TARGET, Batch
from edgelm_training.runs.loss import LossSums


def count_pairs(batch: Batch) -> int:
    """Count the pairs of a batch: each is two of its rows."""
    return len(batch.ids_BT) // 2


def answer_log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Return the log-probability [B] of all tokens of each row that have a target."""
    logits_BTV = model(*batch.inputs)
    # Only the answers' logits: those of the prompts in float32, and their gradient, would be most of a step's memory.
    counted_BT = batch.targets_BT != NO_TARGET
    losses_R = functional.cross_entropy(logits_BTV[counted_BT].float(), batch.targets_BT[counted_BT], reduction="none")
    losses_BT = losses_R.new_zeros(counted_BT.shape).masked_scatter(counted_BT, losses_R)
    return -losses_BT.sum(1)


def dpo_loss(model: nn.Module, batch: Batch, reference: Callable[[nn.Module, Batch], Tensor], beta: float) -> LossSums:
    """Sum -log σ(beta · margin) over pairs (equation 7), where row 2i of the batch is better than row 2i + 1.

    A row's reward is beta · (log p(answer) - log p_reference(answer)), the margin the better row's less the worse's.

    reference: gives the log-probabilities [B] of the model that training began with.
    """
    with torch.no_grad():
        reference_B = reference(model, batch)
    rewards_B = beta * (answer_log_probabilities(model, batch) - reference_B)
    chosen, rejected = rewards_B[0::2], rewards_B[1::2]
    margins = chosen - rejected
    loss = -functional.logsigmoid(margins).sum()
    reported = {
        "loss": loss,
        "accuracy": (margins > 0).sum(),
        "margin": margins.sum(),
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
    }
    return LossSums(objective=loss, reported={name: value.detach() for name, value in reported.items()})

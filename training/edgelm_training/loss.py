"""What training minimizes: the cross-entropy of the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm_training.batches import NO_TARGET, Batch


@dataclass(frozen=True, kw_only=True)
class LossSums:
    """Sums over the counted units (tokens) of a batch, so that any split of it adds up to the same mean.

    objective: what the gradient is of. reported: what the log shows, by name; `loss` is always there.
    """

    objective: Tensor
    reported: dict[str, Tensor]


def count_targets(batch: Batch) -> int:
    """Count the tokens that have a loss."""
    return int((batch.targets_BT != NO_TARGET).sum())


def next_token_loss(model: nn.Module, batch: Batch, z_loss: float = 0.0) -> LossSums:
    """Sum the cross-entropy of the next tokens, in nats; `z_loss` is the weight of the mean log(Z)² on top.

    The penalty keeps the softmax's normalizer near 1 and so the logits small (PaLM, arXiv:2204.02311, section 5).
    """
    return next_token_sums(model(batch.ids_BT, batch.documents_BT), batch.targets_BT, z_loss)


def next_token_sums(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float) -> LossSums:
    """Sum as `next_token_loss` does, from logits."""
    # The log of a sum over the vocabulary needs float32, whatever the matrix products were in.
    logits_RV = logits_BTV.flatten(0, 1).float()
    targets_R = targets_BT.flatten()
    loss = functional.cross_entropy(logits_RV, targets_R, ignore_index=NO_TARGET, reduction="sum")
    reported = {"loss": loss.detach()}
    if z_loss == 0.0:
        return LossSums(objective=loss, reported=reported)
    log_z_R = torch.logsumexp(logits_RV, dim=-1)
    penalty = (log_z_R.square() * (targets_R != NO_TARGET)).sum()
    return LossSums(objective=loss + z_loss * penalty, reported=reported | {"z_loss": z_loss * penalty.detach()})

"""What training minimizes: the cross-entropy of the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from edgelm_training.rows.batches import NO_TARGET, Batch

# Logits at once, on a CPU (True) or not: there 2 MB of float32 stay in the cache, elsewhere fewer launches are faster.
_ELEMENTS_AT_ONCE = {True: 1 << 19, False: 1 << 27}


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
    return next_token_sums(model(*batch.inputs), batch.targets_BT, z_loss)


def next_token_sums(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float, *, weight: float = 1.0) -> LossSums:
    """Sum as `next_token_loss` does, from logits; `weight` is that of the cross-entropy in the objective."""
    logits_RV, targets_R = logits_BTV.flatten(0, 1), targets_BT.flatten()
    objective, loss, penalty = _CrossEntropy.apply(logits_RV, targets_R, z_loss, weight)  # type: ignore[no-untyped-call]
    reported = {"loss": loss} if z_loss == 0.0 else {"loss": loss, "z_loss": penalty}
    return LossSums(objective=objective, reported=reported)


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that makes its gradient beside the loss, a few rows at a time (arXiv:2410.10989, section 3.2).

    What lies between the logits and their gradient is float32, since the log of a sum over the vocabulary needs it,
    and stays in the processor's cache: no more than the logits and their gradient is ever held for all rows.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_RV: Tensor, targets_R: Tensor, z_loss: float, weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:  # objective, loss, penalty
        loss, penalty = logits_RV.new_zeros(2, dtype=torch.float32)
        gradient_RV = None
        if ctx.needs_input_grad[0]:
            # A scaler multiplies fp16's gradient later; most of it would be too small for fp16 until then.
            dtype = torch.float32 if logits_RV.dtype == torch.float16 else logits_RV.dtype
            gradient_RV = torch.empty_like(logits_RV, dtype=dtype)
        rows = max(1, _ELEMENTS_AT_ONCE[logits_RV.is_cpu] // logits_RV.shape[1])
        for first in range(0, len(targets_R), rows):
            piece_RV, targets_R1 = logits_RV[first : first + rows], targets_R[first : first + rows, None]
            is_counted_R1 = targets_R1 != NO_TARGET
            targets_R1 = targets_R1.where(is_counted_R1, 0)
            log_shares_RV = functional.log_softmax(piece_RV, dim=-1, dtype=torch.float32)
            log_share_R1 = log_shares_RV.gather(1, targets_R1)
            log_z_R1 = piece_RV.gather(1, targets_R1).float() - log_share_R1
            loss -= log_share_R1.where(is_counted_R1, 0).sum()
            penalty += z_loss * log_z_R1.where(is_counted_R1, 0).square().sum()
            if gradient_RV is not None:
                piece_gradient_RV = log_shares_RV.exp_().mul_(weight + 2 * z_loss * log_z_R1)
                piece_gradient_RV.scatter_add_(1, targets_R1, torch.full_like(log_share_R1, -weight))
                gradient_RV[first : first + rows] = piece_gradient_RV.masked_fill_(~is_counted_R1, 0)
        ctx.save_for_backward(gradient_RV)
        ctx.dtype = logits_RV.dtype
        ctx.mark_non_differentiable(loss, penalty)
        return weight * loss + penalty, loss, penalty

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_RV,) = ctx.saved_tensors
        return (gradient_RV * scale).to(ctx.dtype), None, None, None

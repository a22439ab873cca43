"""The loss and its own gradient, against PyTorch's cross-entropy and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgelm_training.rows.batches import NO_TARGET
from edgelm_training.runs import loss
from edgelm_training.runs.loss import next_token_sums

# Largest relative difference of the gradient: float32's own sums, or the rounding of the narrower type.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


@pytest.fixture(name="targets_BT")
def targets() -> Tensor:
    targets_BT = torch.randint(0, 5000, (3, 40), generator=torch.Generator().manual_seed(1))
    targets_BT[0, :9] = targets_BT[2, 39] = NO_TARGET
    return targets_BT


def plain_sums(logits_BTV: Tensor, targets_BT: Tensor, z_loss: float) -> Tensor:
    logits_RV = logits_BTV.flatten(0, 1).float()
    loss = functional.cross_entropy(logits_RV, targets_BT.flatten(), reduction="sum", ignore_index=NO_TARGET)
    log_z_R = logits_RV.logsumexp(-1)
    return loss + z_loss * (log_z_R.square() * (targets_BT.flatten() != NO_TARGET)).sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_loss_and_gradient_are_pytorchs(targets_BT: Tensor, dtype: torch.dtype, z_loss: float) -> None:
    logits_BTV = (torch.randn(3, 40, 5000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    ours, theirs = logits_BTV.clone().requires_grad_(), logits_BTV.clone().requires_grad_()
    sums, expected = next_token_sums(ours, targets_BT, z_loss), plain_sums(theirs, targets_BT, z_loss)
    torch.testing.assert_close(sums.objective, expected, rtol=1e-6, atol=0)
    (sums.objective / 7).backward()
    (expected / 7).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    difference = (ours.grad.float() - theirs.grad.float()).norm() / theirs.grad.float().norm()
    assert difference <= TOLERANCES[dtype]
    assert not ours.grad[targets_BT == NO_TARGET].any()


def test_a_row_that_is_more_than_is_computed_at_once_is_computed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_BTV = torch.randn(1, 3, 20, generator=torch.Generator().manual_seed(0))
    targets_BT = torch.tensor([[3, NO_TARGET, 19]])
    monkeypatch.setattr(loss, "_ELEMENTS_AT_ONCE", {True: 19, False: 19})
    sums, expected = next_token_sums(logits_BTV, targets_BT, 0.1), plain_sums(logits_BTV, targets_BT, 0.1)
    torch.testing.assert_close(sums.objective, expected, rtol=1e-6, atol=0)


def test_a_scaled_fp16_gradient_has_what_fp16_could_not_hold_before_it_was_scaled() -> None:
    # Probabilities of 1, 8e-7 and 4e-8; what fp16 holds lies 6e-8 apart.
    logits_BTV = torch.tensor([[[0.0, -14.0, -17.0]]], dtype=torch.float16, requires_grad=True)
    next_token_sums(logits_BTV, torch.tensor([[0]]), 0.0).objective.mul(2**14).backward()
    assert logits_BTV.grad is not None
    wanted = 2**14 * logits_BTV.detach().float().softmax(-1)[0, 0, 1:]
    torch.testing.assert_close(logits_BTV.grad[0, 0, 1:].float(), wanted, rtol=1e-3, atol=0)  # fp16's own rounding


def test_no_gradient_is_made_where_none_is_asked_for(targets_BT: Tensor) -> None:
    assert not next_token_sums(torch.zeros(3, 40, 5000), targets_BT, 0.0).objective.requires_grad

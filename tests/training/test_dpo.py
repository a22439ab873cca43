"""The loss of direct preference optimization, against a hand-computed one and TRL's formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm_training.dpo import answer_log_probabilities, count_pairs, dpo_loss
from edgelm_training.rows.batches import NO_TARGET, Batch


class Table(nn.Module):
    """A model whose logits at each place depend on the token there alone."""

    def __init__(self, logits_VV: Tensor) -> None:
        super().__init__()
        self.logits_VV = nn.Parameter(logits_VV)

    def forward(self, ids_BT: Tensor, _documents_BT: Tensor | None = None) -> Tensor:
        return self.logits_VV[ids_BT]


def batch_of(rows: list[list[int]], targets: list[list[int]]) -> Batch:
    ids_BT, targets_BT = torch.tensor(rows), torch.tensor(targets)
    return Batch(ids_BT=ids_BT, targets_BT=targets_BT, documents_BT=torch.zeros_like(ids_BT))


N = NO_TARGET
# Prompt 0 1; the better answer is 2, the worse one 1 2.
PAIR = batch_of([[0, 1, 2, 0], [0, 1, 1, 2]], [[N, 2, N, N], [N, 1, 2, N]])


def test_a_loss_computed_by_hand() -> None:
    # After token 1 the model says 1 with probability 1/4 and 2 with 3/4; the reference thinks 1/2 each.
    model = Table(torch.log(torch.tensor([[1.0, 1, 1], [1e-9, 1, 3], [1, 1, 1]])))
    reference = torch.tensor([math.log(1 / 2), math.log(1 / 4)])

    sums = dpo_loss(model, PAIR, lambda *_: reference, beta=0.5)

    # log p: better log 3/4, worse log 1/4 + log 3/4. Rewards: 0.5 log 3/2 and 0.5 log (3/16 · 4) = 0.5 log 3/4.
    better, worse = 0.5 * math.log(3 / 2), 0.5 * math.log(3 / 4)
    expected = {
        "loss": math.log(1 + math.exp(worse - better)),
        "accuracy": 1.0,
        "margin": better - worse,
        "chosen_reward": better,
        "rejected_reward": worse,
    }
    assert {name: float(value) for name, value in sums.reported.items()} == pytest.approx(expected, abs=1e-6)
    assert float(sums.objective.detach()) == pytest.approx(math.log(1 + math.sqrt(1 / 2)), abs=1e-6)
    assert count_pairs(PAIR) == 1


def test_loss_and_gradient_are_those_of_trl() -> None:
    """DPOTrainer's "sigmoid" loss, written out: a mean over pairs of -logsigmoid(beta · (policy - reference))."""
    torch.manual_seed(0)
    model, reference = Table(torch.randn(11, 11)), Table(torch.randn(11, 11))
    ids_BT = torch.randint(11, (6, 9))
    targets_BT = torch.where(torch.rand(6, 9) < 0.5, ids_BT.roll(-1, 1), N)
    batch = Batch(ids_BT=ids_BT, targets_BT=targets_BT, documents_BT=torch.zeros_like(ids_BT))

    ours = dpo_loss(model, batch, lambda _, b: answer_log_probabilities(reference, b), beta=0.3).objective / 3

    def log_probabilities(table: nn.Module) -> Tensor:
        mask = targets_BT != N
        labels = targets_BT.masked_fill(~mask, 0)
        chosen = torch.gather(table(ids_BT).log_softmax(-1), 2, labels[..., None])[..., 0]
        return (chosen * mask).sum(-1)

    policy, frozen = log_probabilities(model), log_probabilities(reference).detach()
    log_ratios = (policy[0::2] - policy[1::2]) - (frozen[0::2] - frozen[1::2])
    theirs = -functional.logsigmoid(0.3 * log_ratios).mean()

    # Sums of some ten float32 numbers in another order. Measured: 3e-8.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    grads = [torch.autograd.grad(loss, model.logits_VV)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_a_model_that_is_its_reference_has_the_loss_of_a_coin() -> None:
    model = Table(torch.randn(3, 3))
    sums = dpo_loss(model, PAIR, answer_log_probabilities, beta=0.1)
    assert float(sums.objective.detach()) == pytest.approx(math.log(2))
    assert float(sums.reported["margin"]) == 0.0


def test_the_backward_pass_keeps_float32_of_the_answers_alone() -> None:
    model, kept = Table(torch.randn(3, 3)), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer_log_probabilities(model, PAIR)

    assert max(tensor.numel() for tensor in kept if tensor.dtype == torch.float32) == 3 * 3  # three targets of eight

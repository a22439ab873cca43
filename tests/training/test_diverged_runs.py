"""Runs whose weights give no numbers any more: nothing of them is saved, and the way out is said."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_training_runs import loss_log, settings

from edgelm.config import ModelConfig
from edgelm.errors import TrainingError
from edgelm_training.model import Transformer, generate
from edgelm_training.pretrain import pretrain


def poison(monkeypatch: pytest.MonkeyPatch, *, from_step: int, in_training: bool) -> None:
    """Let the model's logits be no numbers from the pass behind a step on, in training or out of it."""
    forward = Transformer.forward
    steps = 0

    def poisoned(model: Transformer, *inputs: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += model.training
        ruined = model.training == in_training and steps >= from_step
        return forward(model, *inputs) * (math.nan if ruined else 1)

    monkeypatch.setattr(Transformer, "forward", poisoned)


def test_a_validation_loss_that_is_no_number_stops_the_run_and_is_not_saved(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, from_step=4, in_training=False)
    run = tmp_path / "run"

    with pytest.raises(TrainingError) as caught:
        pretrain(settings(tiny_shards, run, sample_every=0))

    assert str(caught.value) == (
        f"The validation loss is nan after step 4. The last good checkpoint: {run / 'checkpoints/step-00000002'}. "
        "Lower --learning-rate or --grad-clip, and go on with --resume."
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert [entry["step"] for entry in loss_log(run) if "validation_loss" in entry] == [0, 2]


def test_a_model_that_gives_no_numbers_is_not_trained(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, from_step=0, in_training=False)
    with pytest.raises(TrainingError, match=r"nan after step 0\. .*before anything was learned: look at the model, or"):
        pretrain(settings(tiny_shards, tmp_path / "run"))


def test_a_resumed_run_that_fails_before_it_saves_is_told_to_go_back_one_checkpoint(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    pretrain(settings(tiny_shards, run, max_steps=2, sample_every=0))
    poison(monkeypatch, from_step=1, in_training=True)
    resumed = {"output": str(run), "max_steps": 3}

    with pytest.raises(TrainingError) as caught:
        pretrain(resumed, resume=True)
    assert str(caught.value).endswith(
        f"The last good checkpoint: {run / 'checkpoints/step-00000002'}. Look at these documents, lower "
        "--learning-rate or --grad-clip, and go on with --resume. The run has just gone on from there: if it fails so "
        "again, remove that folder, and it goes on from the checkpoint before, or begins anew."
    )

    monkeypatch.undo()
    shutil.rmtree(run / "checkpoints/step-00000002")
    assert pretrain(resumed, resume=True).step == 3


def test_nothing_is_sampled_from_logits_that_are_no_numbers(tiny_config: ModelConfig) -> None:
    model = Transformer(tiny_config)
    model.get_parameter("model.norm.weight").data.fill_(math.nan)
    for temperature in (0.0, 0.8):
        with pytest.raises(TrainingError, match=r"logits are no numbers: training has ruined its weights\. Lower"):
            generate(model, [3], 2, temperature=temperature)

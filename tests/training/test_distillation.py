"""Distillation: a student takes over what its teacher makes of a text, and a teacher that does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from command_line import invoke
from tiny_training_runs import MODEL, assert_same_run, finetune_settings, loss_log, settings
from torch import nn

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, EdgeLMError
from edgelm_training.checkpoints.checkpoint import save_checkpoint
from edgelm_training.distill import distill
from edgelm_training.distillation import distillation_loss
from edgelm_training.finetune import finetune
from edgelm_training.model import Transformer
from edgelm_training.pretrain import build_recipe, pretrain
from edgelm_training.rows.batches import NO_TARGET, Batch
from edgelm_training.runs.loss import next_token_loss
from edgelm_training.runs.throughput import flops_per_token
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings.distill_config import DistillConfig


class Fixed(nn.Module):
    """A model that always gives the same logits [B, T, V], which can learn."""

    def __init__(self, logits: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, ids_BT: torch.Tensor, documents_BT: torch.Tensor) -> torch.Tensor:
        return self.logits


STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 1, 4, 5))


def batch(*targets: int) -> Batch:
    ids_BT = torch.zeros(1, len(targets), dtype=torch.int64)
    return Batch(ids_BT=ids_BT, targets_BT=torch.tensor([targets]), documents_BT=ids_BT)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)])
def test_the_loss_is_the_weighted_sum_of_both_and_the_whole_penalty(
    weight: float, temperature: float, z_loss: float
) -> None:
    learning = Fixed(STUDENT)
    found = distillation_loss(
        learning, batch(3, NO_TARGET, 0, 1), Fixed(TEACHER), weight=weight, temperature=temperature, z_loss=z_loss
    )
    found.objective.backward()

    counted, targets = [0, 2, 3], [3, 0, 1]
    student, teacher = (log_softmax(logits[0] / temperature) for logits in (STUDENT, TEACHER))
    divergence = (np.exp(teacher) * (teacher - student))[counted].sum()
    text = -log_softmax(STUDENT[0])[counted, targets].sum()
    assert float(found.reported["loss"]) == pytest.approx(text, rel=1e-5)
    assert float(found.reported["divergence"]) == pytest.approx(divergence, rel=1e-5)
    z = np.exp(STUDENT[0]).sum(-1)
    wanted = weight * temperature**2 * divergence + (1 - weight) * text + z_loss * (np.log(z[counted]) ** 2).sum()
    assert float(found.objective.detach()) == pytest.approx(wanted, rel=1e-5)
    shares = np.exp(log_softmax(STUDENT[0]))
    gradient = weight * temperature * (np.exp(student) - np.exp(teacher))
    gradient += (1 - weight) * (shares - np.eye(5)[[3, 0, 0, 1]]) + 2 * z_loss * np.log(z)[:, None] * shares
    gradient[1] = 0
    np.testing.assert_allclose(learning.logits.grad[0], gradient, atol=1e-6)


@pytest.mark.parametrize(("teachers", "students"), [(5, 3), (3, 5)])
def test_rows_that_one_vocabulary_alone_has_are_of_no_token(teachers: int, students: int) -> None:
    student = Fixed(STUDENT[..., :students])

    found = distillation_loss(student, batch(2, 0, 0, 1), Fixed(TEACHER[..., :teachers]), weight=1.0, temperature=2.0)
    found.objective.backward()

    wanted = np.exp(log_softmax(TEACHER[0, :, :3] / 2))
    logits = log_softmax(STUDENT[0, :, :students] / 2)
    assert float(found.reported["divergence"]) == pytest.approx(
        (wanted * (np.log(wanted) - logits[:, :3])).sum(), rel=1e-5
    )
    wanted = np.pad(wanted, ((0, 0), (0, students - 3)))
    # T² · (q - p) / T: what the student alone has becomes less likely.
    np.testing.assert_allclose(student.logits.grad[0], 2 * (np.exp(logits) - wanted), atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    student = Fixed(TEACHER)

    found = distillation_loss(student, batch(3, 2, 0, 1), Fixed(TEACHER), weight=1.0, temperature=3.0)
    found.objective.backward()

    assert float(found.objective.detach()) == pytest.approx(0, abs=1e-6)
    assert student.logits.grad is not None
    assert float(student.logits.grad.abs().max()) < 1e-6


def test_without_its_share_the_teacher_changes_no_gradient() -> None:
    student, alone = Fixed(STUDENT), Fixed(STUDENT)
    targets = batch(3, NO_TARGET, 0, 1)

    distillation_loss(student, targets, Fixed(TEACHER), weight=0.0, temperature=1.0, z_loss=0.1).objective.backward()
    next_token_loss(alone, targets, z_loss=0.1).objective.backward()

    assert torch.equal(student.logits.grad, alone.logits.grad)


@pytest.fixture(scope="module")
def teacher(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned something of the tiny corpus."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    pretrain(settings(tiny_shards, run, max_steps=30, save_every=30, sample_every=0))
    return run / "latest"


def student_settings(shards: Path, teacher: Path, output: Path, **changes: Any) -> dict[str, Any]:
    small = MODEL | {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    return settings(shards, output, teacher=str(teacher), model=small, sample_every=0) | changes


def divergences(run: Path) -> list[float]:
    return [entry["divergence"] for entry in loss_log(run) if "divergence" in entry]


def test_a_teacher_costs_a_pass_forward_beside_the_three_of_the_student(
    tiny_shards: Path, teacher: Path, tmp_path: Path
) -> None:
    _, recipe = build_recipe(DistillConfig(**student_settings(tiny_shards, teacher, tmp_path)), SilentReporter())

    own, teachers = (flops_per_token(model, 32) for model in (recipe.model.config, ModelConfig.load(teacher)))
    assert recipe.flops_per_token == pytest.approx(own + teachers / 3)


def test_a_student_comes_nearer_to_its_teacher(tiny_shards: Path, teacher: Path, tmp_path: Path) -> None:
    distill(student_settings(tiny_shards, teacher, tmp_path / "run", max_steps=30, save_every=30))

    # Measured: from 0.119 to 0.033 nats a token.
    assert divergences(tmp_path / "run")[-1] < 0.5 * divergences(tmp_path / "run")[0]


def test_a_student_that_resumes_is_the_one_that_was_never_interrupted(
    tiny_shards: Path, teacher: Path, tmp_path: Path
) -> None:
    for name in ("whole", "stopped"):
        distill(student_settings(tiny_shards, teacher, tmp_path / name, keep_last=9))
    (tmp_path / "stopped/checkpoints/step-00000008").rename(tmp_path / "gone")
    distill({"output": str(tmp_path / "stopped")}, resume=True)

    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def run(*arguments: object) -> Result:
    return invoke("distill", *arguments)


def test_the_command_distills(tiny_shards: Path, teacher: Path, tmp_path: Path) -> None:
    options = ("--max-steps", 2, "--global-batch-size", 2, "--threads", 1, "--sample-every", 0, "--no-tensorboard")

    result = run(teacher, "--teacher", teacher, "--data", tiny_shards, "-o", tmp_path / "out", "--json", *options)

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["step"] == 2
    assert divergences(tmp_path / "out")[0] == pytest.approx(0, abs=1e-6)


def test_the_student_is_named_once(teacher: Path) -> None:
    result = run(teacher, "--init", teacher)

    assert result.exit_code == 2
    assert "The student is named twice" in result.stderr


def test_a_student_needs_a_teacher(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher is not set: name the checkpoint folder to learn from"):
        distill(settings(tiny_shards, tmp_path / "run"))


def saved_teacher(folder: Path, tiny_shards: Path, **changes: Any) -> Path:
    model = Transformer(ModelConfig.from_dict({"model_type": "llama", "vocab_size": 320} | MODEL | changes))
    save_checkpoint(model, folder, text_files_from=tiny_shards)
    return folder


@pytest.mark.parametrize(
    ("typo", "message"),
    [({"teacher": "techer"}, "techer is no checkpoint folder"), ({"qat": "int5"}, "qat is 'int5'")],
)
def test_a_typo_is_said_before_the_student_is_made(
    tiny_shards: Path,
    teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    typo: dict[str, str],
    message: str,
) -> None:
    monkeypatch.setattr("edgelm_training.pretrain.Transformer", None)
    with pytest.raises(EdgeLMError, match=message):
        distill(student_settings(tiny_shards, teacher, tmp_path / "run") | typo)


def test_a_teacher_of_other_tokens_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    other = saved_teacher(tmp_path / "teacher", tiny_shards)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"whose tokenizer\.json is not that of"):
        distill(student_settings(tiny_shards, other, tmp_path / "run"))


def test_a_teacher_with_fewer_rows_than_tokens_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    other = saved_teacher(tmp_path / "teacher", tiny_shards, vocab_size=319)
    with pytest.raises(ConfigError, match=r"a vocabulary of 319; its tokenizer has 320 tokens, so .* another teacher"):
        distill(student_settings(tiny_shards, other, tmp_path / "run"))


@pytest.mark.parametrize(("teachers", "students"), [(328, 320), (320, 328)])
def test_a_padded_vocabulary_teaches_what_both_have(
    teachers: int, students: int, tiny_shards: Path, tmp_path: Path
) -> None:
    other = saved_teacher(tmp_path / "teacher", tiny_shards, vocab_size=teachers)
    changes = student_settings(tiny_shards, other, tmp_path / "run", max_steps=2)
    changes["model"] = {**changes["model"], "vocab_size": students}

    assert distill(changes).step == 2


def test_a_teacher_that_cannot_read_the_rows_is_refused(tiny_shards: Path, tmp_path: Path) -> None:
    other = saved_teacher(tmp_path / "teacher", tiny_shards, max_position_embeddings=16)
    with pytest.raises(ConfigError, match=r"16 tokens; sequence_length is 32\. Shorten the rows: --sequence-length 16"):
        distill(student_settings(tiny_shards, other, tmp_path / "run"))


def test_preferences_have_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="teacher is set, and method is 'dpo'"):
        finetune(finetune_settings(tmp_path, tmp_path, tmp_path / "run", method="dpo", teacher=str(tmp_path)))

"""DistillConfig: the settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import setting


@dataclass(frozen=True, kw_only=True)
class DistillConfig(PretrainConfig):
    """Settings of distillation: those of pretraining, with a teacher.

    The student is a checkpoint (`init`) or new (`params`, `model`). The defaults are those of DistilBERT and its kin
    (arXiv:1910.01108): half of the loss from the teacher, both softened by a temperature of 2.
    """

    teacher: str | None = setting(None, "The checkpoint folder to learn from; with the tokenizer of the shards.")
    teacher_weight: float = setting(0.5, "Share of the teacher in the loss; the rest is the text's own.")
    teacher_temperature: float = setting(2.0, "Both models' logits are divided by it before they are compared.")

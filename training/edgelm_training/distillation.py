"""Distillation: a model learns the next-token probabilities of another one, its teacher (arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.errors import ConfigError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.checkpoints.checkpoint import TOKENIZER_FILE, load_checkpoint
from edgelm_training.model import Transformer
from edgelm_training.rows.batches import NO_TARGET, Batch
from edgelm_training.runs.loss import LossSums, next_token_loss, next_token_sums
from edgelm_training.runs.throughput import flops_per_token
from edgelm_training.settings.train_config import TrainConfig

Loss = Callable[[nn.Module, Batch], LossSums]


def text_loss(config: TrainConfig, model: Transformer, tokenizer_folder: Path) -> tuple[Loss, float]:
    """Return the loss that the config asks for, and the operations of a token's forward and backward passes.

    tokenizer_folder: with the tokenizer that the data was encoded with.

    Raises:
        ConfigError: the teacher has another tokenizer, fewer rows than that has tokens, or a context that is shorter
            than the rows.
        CheckpointError: the teacher's checkpoint folder is broken.
    """
    length = config.known("sequence_length")
    flops = flops_per_token(model.config, length)
    if config.teacher is None:
        return partial(next_token_loss, z_loss=config.z_loss), flops
    teacher = _load_teacher(config, tokenizer_folder)
    loss = partial(
        distillation_loss,
        teacher=teacher,
        weight=config.teacher_weight,
        temperature=config.teacher_temperature,
        z_loss=config.z_loss,
    )
    # The teacher has only a forward pass, a third of the operations.
    return loss, flops + flops_per_token(teacher.config, length) / 3


def _load_teacher(config: TrainConfig, tokenizer_folder: Path) -> Transformer:
    assert config.teacher is not None  # the caller has looked
    teacher = load_checkpoint(config.teacher).requires_grad_(False).eval()
    ours, theirs = tokenizer_folder / TOKENIZER_FILE, Path(config.teacher) / TOKENIZER_FILE
    if not theirs.is_file() or ours.read_bytes() != theirs.read_bytes():
        raise ConfigError(
            f"teacher is {config.teacher}, whose {TOKENIZER_FILE} is not that of {tokenizer_folder}: its probabilities "
            "would be of other tokens. Take a teacher with the same tokenizer."
        )
    tokens = Tokenizer.load(tokenizer_folder).vocab_size
    if teacher.config.vocab_size < tokens:
        raise ConfigError(
            f"teacher is {config.teacher}, with a vocabulary of {teacher.config.vocab_size}; its tokenizer has "
            f"{tokens} tokens, so it cannot read every text. Take another teacher."
        )
    length, context = config.known("sequence_length"), teacher.config.max_position_embeddings
    if length > context:
        raise ConfigError(
            f"teacher is {config.teacher}, whose context holds {context} tokens; sequence_length is {length}. Shorten "
            f"the rows: --sequence-length {context}."
        )
    return teacher


def distillation_loss(
    model: nn.Module, batch: Batch, teacher: nn.Module, weight: float, temperature: float, z_loss: float = 0.0
) -> LossSums:
    """Sum weight · T² · KL(teacher ‖ model), of logits divided by T, the temperature, (1 - weight) · the loss of the
    text, and the whole penalty of `z_loss`, which is of the model's logits whatever they learn from.

    T² keeps the gradient's size where both are softened. `loss` is reported as without a teacher, so that curves
    compare; `divergence` is the KL divergence in nats.
    """
    logits_BTV = model(*batch.inputs)
    with torch.no_grad():
        wanted_BTV = teacher.to(batch.ids_BT.device)(*batch.inputs)
    learned_BTV = logits_BTV if weight < 1 or z_loss else logits_BTV.detach()  # else a gradient of zeros is made
    text = next_token_sums(learned_BTV, batch.targets_BT, z_loss, weight=1 - weight)
    counted_BT = batch.targets_BT != NO_TARGET
    divergence = _divergence(wanted_BTV[counted_BT], logits_BTV[counted_BT], temperature)
    objective = weight * temperature**2 * divergence + text.objective
    return LossSums(objective=objective, reported=text.reported | {"divergence": divergence.detach()})


def _divergence(wanted_RV: Tensor, logits_RV: Tensor, temperature: float) -> Tensor:
    """Sum the rows' divergences. Where a vocabulary is padded, rows behind the other one's end are of no token: the
    teacher is asked for the tokens that both have, and gives what the student has beyond them no probability.
    """
    shared = min(wanted_RV.shape[-1], logits_RV.shape[-1])
    wanted_RV = functional.log_softmax(wanted_RV[:, :shared].float() / temperature, dim=-1)
    logits_RV = functional.log_softmax(logits_RV.float() / temperature, dim=-1)[:, :shared]
    return functional.kl_div(logits_RV, wanted_RV, reduction="sum", log_target=True)

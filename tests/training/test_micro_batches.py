"""How a process's share of a step is split, so that it fits memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training_runs import finetune_settings

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError
from edgelm_training.finetune import finetune
from edgelm_training.model import Transformer
from edgelm_training.runs import micro_batches
from edgelm_training.runs.device import Device
from edgelm_training.runs.micro_batches import piece_tokens, rows_of_step, split_share
from edgelm_training.settings.finetune_config import FinetuneConfig
from edgelm_training.settings.pretrain_config import PretrainConfig

CPU, CUDA = (Device(device=torch.device(kind), precision="fp32") for kind in ("cpu", "cuda"))
HALF = Device(device=torch.device("cpu"), precision="bf16")


def shape(layers: int, hidden_size: int) -> ModelConfig:
    return ModelConfig(
        model_type="llama", vocab_size=320, hidden_size=hidden_size, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64,
    )  # fmt: skip


def config(**settings: object) -> PretrainConfig:
    return PretrainConfig(data="shards", sequence_length=512, global_batch_size=16, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "hidden_size", "tokens"),
    [(2, 32, 8192), (30, 576, 1657), (24, 2048, 582)],  # 4 GiB / 150 / 30 / 576 = 1657.01
)
def test_on_a_cpu_a_piece_has_the_tokens_whose_activations_fit(layers: int, hidden_size: int, tokens: int) -> None:
    assert piece_tokens(shape(layers, hidden_size), config(), CPU) == tokens
    assert piece_tokens(shape(layers, hidden_size), config(), HALF) // 2 == min(tokens, 4096)
    assert piece_tokens(shape(layers, hidden_size), config(), CUDA) == 8192
    assert piece_tokens(shape(layers, hidden_size), config(activation_checkpointing=True), CPU) == 8192
    assert piece_tokens(None, config(), CPU) == 8192


def test_a_row_is_whole_and_who_says_how_many_gets_them() -> None:
    assert split_share(config(), 1, tokens=8192) == 1
    assert split_share(config(), 2, tokens=1024) == 4
    assert split_share(config(), 1, tokens=291) == 16
    assert split_share(config(micro_batch_size=8), 1, tokens=291) == 2
    assert split_share(config(grad_accum_steps=4), 1, tokens=291) == 4


def test_pieces_and_their_rows_together_make_a_step() -> None:
    asked = {"micro_batch_size": 2, "grad_accum_steps": 3}
    assert rows_of_step(PretrainConfig(**asked), 4) == 24  # type: ignore[arg-type]
    assert rows_of_step(config(**asked), 4) == 16
    assert rows_of_step(PretrainConfig(micro_batch_size=2), 4) is None
    assert rows_of_step(FinetuneConfig(grad_accum_steps=3), 4) is None


def test_pieces_that_would_have_more_rows_than_they_may_are_refused() -> None:
    assert split_share(config(micro_batch_size=8, grad_accum_steps=4), 1, tokens=1) == 4
    with pytest.raises(ConfigError, match="grad_accum_steps is 4 and micro_batch_size 2, which hold fewer than the 16"):
        split_share(config(micro_batch_size=2, grad_accum_steps=4), 1, tokens=1)


def test_both_answers_of_a_pair_take_their_share_of_a_piece(
    tiny_chat_model: Path, tiny_preferences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = Transformer.forward

    def counted(model: Transformer, ids_BT: torch.Tensor, *others: Any) -> torch.Tensor:
        rows.append(len(ids_BT))
        return forward(model, ids_BT, *others)

    monkeypatch.setattr(Transformer, "forward", counted)
    monkeypatch.setattr(micro_batches, "_MOST_TOKENS", 256)
    settings = finetune_settings(tiny_chat_model, tiny_preferences, tmp_path / "run", method="dpo", sequence_length=64)
    finetune(settings | {"global_batch_size": 8, "max_steps": 1, "eval_every": 0})
    assert rows == [4] * 8  # of 64 tokens, once by the model and once by what it is compared with

"""How long a run is and its rows are, where nobody says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training_runs import MODEL, settings

from edgelm.config import ModelConfig
from edgelm_training import pretrain as pretraining
from edgelm_training.checkpoints.checkpoint import save_checkpoint
from edgelm_training.model import Transformer
from edgelm_training.pretrain import build_recipe, pretrain
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import read_settings


def test_a_checkpoint_alone_is_trained_once_through_the_data_at_a_low_rate(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = ModelConfig.from_dict(MODEL | {"model_type": "llama", "vocab_size": 320, "max_position_embeddings": 4096})
    save_checkpoint(Transformer(wide), tmp_path / "ckpt", text_files_from=tiny_shards)
    begun = settings(tiny_shards, tmp_path / "run", init=str(tmp_path / "ckpt"))
    for chosen in ("model", "max_steps", "global_batch_size", "learning_rate", "warmup_steps"):
        del begun[chosen]
    notes: list[str] = []
    monkeypatch.setattr(SilentReporter, "note", lambda _, text: notes.append(text))

    pretrain(begun)

    run = read_settings(tmp_path / "run/config.toml", PretrainConfig)
    # 6,905 tokens are less than two steps; the rate is a tenth of what a small model begins with.
    chosen = [run[name] for name in ("sequence_length", "global_batch_size", "max_steps", "warmup_steps")]
    assert chosen == [512, 8, 2, 1]
    assert run["learning_rate"] == pytest.approx(4e-4)
    assert notes[0] == (
        "28,832 parameters; 2 steps of 8 rows of 512 tokens: 8,192, of data that has 6,905; learning rate up to 0.0004."
    )


def test_of_experts_those_of_a_token_decide_how_long_a_run_is(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = MODEL | {"num_experts": 4, "num_experts_per_tok": 1}
    config = ModelConfig.from_dict(experts | {"model_type": "llama", "vocab_size": 320, "max_position_embeddings": 32})
    given, notes = list[int](), list[str]()
    budget = pretraining.training_budget
    monkeypatch.setattr(pretraining, "training_budget", lambda n, *a, **k: given.append(n) or budget(n, *a, **k))
    monkeypatch.setattr(SilentReporter, "note", lambda _, text: notes.append(text))

    pretrain(settings(tiny_shards, tmp_path / "run", model=experts, max_steps=2))

    layers, expert = config.num_hidden_layers, 3 * config.hidden_size * config.expert_size
    everything = config.count_parameters()
    assert given == [everything - layers * 3 * expert]
    assert notes[0].startswith(f"{everything:,} parameters, {given[0]:,} of them for a token; 2 steps of ")


def test_rows_are_not_as_long_as_a_long_context_unless_that_is_asked_for(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(tiny_shards, tmp_path / "run", model=MODEL | {"max_position_embeddings": 131_072})
    notes: list[str] = []
    monkeypatch.setattr(SilentReporter, "note", lambda _, text: notes.append(text))

    for given in ({}, {"sequence_length": 4096}):
        config, recipe = build_recipe(PretrainConfig(**asked | given), SilentReporter())
        length = given.get("sequence_length", 2048)
        assert (config.sequence_length, recipe.model.config.max_position_embeddings) == (length, 131_072)
        assert f" rows of {length:,} tokens (of a context of 131,072): " in notes[-1]

"""Samples: texts that a model writes while it is trained, which the same weights and step give again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_tiny_model import CONFIG
from sea_shards import prepare
from tiny_training_runs import settings

from edgelm.testing import tiny_model_path
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.model import Transformer, generate
from edgelm_training.pretrain import build_recipe
from edgelm_training.runs.samples import check_prompts, write_samples
from edgelm_training.runs.train_log import SilentReporter
from edgelm_training.settings.pretrain_config import PretrainConfig
from edgelm_training.settings.settings import SettingError
from edgelm_training.settings.train_config import TrainConfig


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(replace(CONFIG, eos_token_ids=())).eval()


def texts(model: Transformer, step: int, **settings: object) -> list[str]:
    tokenizer = Tokenizer.load(tiny_model_path())
    config = TrainConfig(sample_prompts=("The sea", ""), sample_tokens=12, **settings)  # type: ignore[arg-type]
    return [sample.text for sample in write_samples(model, tokenizer, tokenizer.encode, config, step)]


def test_the_same_step_gives_the_same_texts_and_another_step_or_seed_others(model: Transformer) -> None:
    drawn = texts(model, 10)
    assert drawn == texts(model, 10)
    assert all(one != other for one, other in zip(drawn, texts(model, 11), strict=True))
    assert all(one != other for one, other in zip(drawn, texts(model, 10, seed=7), strict=True))


def test_pretraining_goes_on_with_a_prompt_as_inference_reads_it(
    tok: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []

    def generate_nothing(_: Transformer, ids: list[int], *__: object, **___: object) -> list[int]:
        read.append(ids)
        return []

    monkeypatch.setattr("edgelm_training.runs.samples.generate", generate_nothing)
    shards = prepare(tok, tmp_path / "shards", (str(corpus),))
    values = settings(shards, tmp_path / "run", sample_prompts=("The sea", ""))
    _, recipe = build_recipe(PretrainConfig(**values), SilentReporter())
    assert recipe.sample is not None
    recipe.sample(1)
    tokenizer = Tokenizer.load(shards)
    assert read == [tokenizer.encode_prompt("The sea"), [tokenizer.control_tokens["<|endoftext|>"]]]


def test_a_prompt_that_fills_the_context_is_refused_before_the_run_begins() -> None:
    config = TrainConfig(sample_prompts=("The", "The sea"))
    check_prompts(config, list, 8)  # of 7 characters, each of which is a token here
    with pytest.raises(SettingError, match=r"a prompt of 7 tokens, 'The sea'; the model's context of 7 has no room"):
        check_prompts(config, list, 7)  # type: ignore[arg-type]
    check_prompts(replace(config, sample_every=0), list, 7)


def test_a_temperature_of_zero_takes_the_likeliest_and_a_prompt_of_nothing_begins_somewhere(model: Transformer) -> None:
    tokenizer = Tokenizer.load(tiny_model_path())
    expected = [tokenizer.decode(generate(model, ids, 12)) for ids in (tokenizer.encode("The sea"), [0])]
    assert texts(model, 10, sample_temperature=0.0) == expected

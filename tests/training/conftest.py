from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_tiny_model import CONFIG, make_checkpoint
from sea_shards import SENTENCES, write_corpus

from edgelm.config import ModelConfig
from edgelm.testing import tiny_model_path
from edgelm_export.verification.verification_text import verification_text
from edgelm_training import trainer
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.tokenizer_training import TokenizerConfig, train_tokenizer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say what this processor could do at best: to measure it is a third of the work of a tiny run."""
    monkeypatch.setattr(trainer, "peak_flops", lambda device: None if device.emulates else 1e11)


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A Llama of two layers, with grouped queries and a head_dim of its own."""
    return ModelConfig(
        model_type="llama",
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the bundled text (6,905 tokens to train on, 66 to validate), each paragraph a document."""
    folder = tmp_path_factory.mktemp("shards")
    corpus = folder / "story.jsonl"
    paragraphs = [paragraph for paragraph in verification_text().split("\n\n") if paragraph]
    corpus.write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    config = PrepareConfig(validation_fraction=0.1, end_token="<|endoftext|>", workers=1)
    prepare_shards([corpus], folder / "shards", tiny_model_path(), config)
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of the tiny model, with a tokenizer, a chat template, and a context of 128 tokens."""
    folder = tmp_path_factory.mktemp("chat-model") / "ckpt"
    return make_checkpoint(folder, replace(CONFIG, max_position_embeddings=128))


@pytest.fixture(scope="session")
def tiny_chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 conversations of a question and an answer."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    pairs = ({"prompt": f"What is {i}?", "completion": f"The sea is {i} blue."} for i in range(40))
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


@pytest.fixture(scope="session")
def tiny_preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 prompts with two answers each."""
    path = tmp_path_factory.mktemp("preferences") / "pairs.jsonl"
    pairs = ({"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea at all."} for i in range(40))
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with a corpus that speaks of the sea."""
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus"))
    return Path("corpus")


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer of that corpus."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("".join(SENTENCES))
    train_tokenizer([folder / "text.txt"], folder / "tok", TokenizerConfig(vocab_size=300))
    return folder / "tok"

import dataclasses
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from make_tiny_model import CONFIG, make_checkpoint
from metaspace_tokenizer import write_metaspace
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from unchecked_export import export_unchecked

import edgelm
from edgelm.architecture.rope_scaling import RopeScaling
from edgelm.language_model import LanguageModel
from edgelm.testing import tiny_model_path
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

TEXT = """The sea is blue, and the sea was grey in the year 1984; it's wide. Thé naïve fiancée said: 漢字かな交じり文.
def sail(sea):
    return [wave for wave in sea if wave.height > 3.5]  # 😀 👨‍👩‍👧 over
user system assistant think Hello there, who are you? I am a small model.
"""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The tiny model: what one file's tests change of it, those of others do not meet."""
    return edgelm.load(tiny_model_path())


@pytest.fixture(scope="module")
def tokenizer() -> edgelm.Tokenizer:
    return edgelm.Tokenizer.load(tiny_model_path())


@pytest.fixture
def hangups_heard() -> Iterator[None]:
    """Hear of a terminal that closes, where the tests were started by nohup too."""
    if sys.platform == "win32":
        yield
        return
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as SmolLM2 has it, with control tokens of both kinds and added tokens that are text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_special_tokens(
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>"]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>", "<table>", "    ")])
    folder = tmp_path_factory.mktemp("byte_level")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def metaspace_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE with `▁` and byte tokens, as Llama 2 has it, in which merges spell the literal of a control token."""
    return write_metaspace(tmp_path_factory.mktemp("metaspace"))


@pytest.fixture(scope="session")
def longrope_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose positions turn otherwise in texts of more than 64 tokens."""
    half = CONFIG.head_dim // 2
    scaling = RopeScaling(
        rope_type="longrope",
        factor=16.0,
        original_max_position_embeddings=64,
        short_factor=(1.0,) * half,
        long_factor=tuple(1.0 + i for i in range(half)),
    )
    folder = tmp_path_factory.mktemp("longrope")
    checkpoint = make_checkpoint(folder / "checkpoint", dataclasses.replace(CONFIG, rope_scaling=scaling))
    export_unchecked(HuggingFaceCheckpoint(checkpoint), folder / "package", "fp32")
    return folder / "package"

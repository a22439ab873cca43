"""Training where memory runs out: an error that says what takes less, and a run that goes on with that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training_runs import settings

import edgelm_training.pretrain
from edgelm.config import ModelConfig
from edgelm.errors import DataError, OutOfMemoryError
from edgelm_training.finetune import finetune
from edgelm_training.model import Transformer
from edgelm_training.pretrain import pretrain
from edgelm_training.runs import memory_needed
from edgelm_training.texts.shards import Shards

ERRORS: dict[str, tuple[Any, str]] = {
    "of a CPU": (lambda: torch.empty(1 << 60), r"can't allocate memory: you tried to allocate \d+ bytes"),
    "of a GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "CUDA out of memory"),
    "of Apple's GPU": (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)."), "MPS backend out of memory"),
    "of numpy": (MemoryError(), "it is not said for what"),
}


@pytest.mark.parametrize("device", ERRORS)
def test_a_run_whose_memory_runs_out_says_what_takes_less(
    device: str, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause, words = ERRORS[device]

    def forward(*_: Any) -> None:
        if isinstance(cause, Exception):
            raise cause
        cause()

    monkeypatch.setattr(Transformer, "forward", forward)
    with pytest.raises(
        OutOfMemoryError,
        match=rf"^There is no memory left to train in: {words}.*--micro-batch-size 1, .*with --resume\.$",
    ):
        pretrain(settings(tiny_shards, tmp_path / "run"))


def test_a_model_that_the_memory_cannot_hold_is_refused_before_it_is_made(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgelm_training.pretrain, "Transformer", None)
    with pytest.raises(
        OutOfMemoryError,
        match=r"^A model of \d+,\d{3},\d{3},\d{3} parameters takes \d+\.\d GB to train: .* GB are free\.",
    ):
        pretrain(settings(tiny_shards, tmp_path / "run", params="900B", model=None, device="cpu"))
    assert not (tmp_path / "run").exists()


def test_rows_that_the_memory_cannot_hold_are_refused_before_one_is_made(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OutOfMemoryError,
        match=r"^sequence_length is 2,000,000,000: a row of so many tokens takes over \d+\.\d GB to train on\. "
        r"\d+\.\d GB are free\. Shorten the rows: --sequence-length\.$",
    ):
        pretrain(
            settings(tiny_shards, tmp_path / "run", params="1M", model=None, device="cpu", sequence_length=2 * 10**9)
        )


def test_a_checkpoint_that_the_memory_cannot_hold_is_refused_before_it_is_read(
    tiny_shards: Path, tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = ModelConfig.load(tiny_chat_model).count_parameters()
    monkeypatch.setattr(Shards, "check_tokenizer", lambda *_: None)
    monkeypatch.setattr(memory_needed, "available_memory", lambda **_: 12 * params - 1)
    with pytest.raises(OutOfMemoryError, match=r"GB to train: .* are free\. Go on with a smaller one: --init\.$"):
        pretrain(settings(tiny_shards, tmp_path / "run", init=str(tiny_chat_model), model=None, device="cpu"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "rank", "bytes_each", "way_out"),
    [
        ("sft", 16, 12, "--method lora, or qlora."),
        ("lora", 16, 4, "--method qlora, or a smaller model."),
        ("dpo", 16, 4, "--method qlora, or a smaller model."),
        ("dpo", 0, 16, "--rank 16, or a smaller model."),
    ],
)
def test_fine_tuning_that_the_memory_cannot_hold_is_refused_before_the_data_is_read(
    method: str,
    rank: int,
    bytes_each: int,
    way_out: str,
    tiny_chat_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = bytes_each * ModelConfig.load(tiny_chat_model).count_parameters()
    monkeypatch.setattr(memory_needed, "available_memory", lambda **_: needed - 1)
    run = {"model": str(tiny_chat_model), "data": ("no.jsonl",), "output": str(tmp_path / "run"), "device": "cpu"}
    with pytest.raises(OutOfMemoryError, match=rf"GB to train: its weights.* are free\. Less: {way_out}$"):
        finetune(run | {"method": method, "rank": rank})
    monkeypatch.setattr(memory_needed, "available_memory", lambda **_: needed)
    with pytest.raises(DataError):
        finetune(run | {"method": method, "rank": rank})


def test_an_error_that_is_no_lack_of_memory_stays_what_it_is(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: Any) -> None:
        raise RuntimeError("The sizes do not match.")

    monkeypatch.setattr(Transformer, "forward", forward)
    with pytest.raises(RuntimeError, match=r"^The sizes do not match\.$"):
        pretrain(settings(tiny_shards, tmp_path / "run"))

"""Batches: every token once an epoch, in an order that is a pure function, and documents that do not see each other."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers.processors import TemplateProcessing

from edgelm.config import ModelConfig
from edgelm.errors import ConfigError, DataError
from edgelm_training.model import Transformer
from edgelm_training.rows.batches import NO_TARGET, PADDING, Batch, Batches
from edgelm_training.rows.row_order import RowOrder
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.shards import Shards
from edgelm_training.texts.tokenizer_training import TokenizerConfig, train_tokenizer

TEXTS = [f"Text {i} says " + f"{i * i} waves. " * (1 + i % 5) for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batches")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    train_tokenizer([folder / "texts.jsonl"], folder / "tok", TokenizerConfig(vocab_size=300))
    prepare(folder, "shards", folder / "tok")
    return folder


def prepare(folder: Path, name: str, tokenizer: Path) -> None:
    prepare_shards([folder / "texts.jsonl"], folder / name, tokenizer, PrepareConfig(workers=1))


@pytest.fixture(scope="module")
def shards(folder: Path) -> Shards:
    return Shards.open(folder / "shards")


@pytest.fixture(scope="module")
def llama_shards(folder: Path) -> Shards:
    """Shards of a tokenizer that begins texts with a token of its own: documents have a beginning and an end."""
    rust = tokenizers.Tokenizer.from_file(str(folder / "tok/tokenizer.json"))
    rust.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    (folder / "llama").mkdir()
    rust.save(str(folder / "llama/tokenizer.json"))
    (folder / "llama/tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    prepare(folder, "llama_shards", folder / "llama")
    return Shards.open(folder / "llama_shards")


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("ids_BT", "targets_BT", "documents_BT"))


def test_each_epoch_holds_every_token_once_in_another_order_and_cut_at_other_places(shards: Shards) -> None:
    rows = Batches(shards, sequence_length=32, seed=3)
    assert rows.rows_per_epoch == shards.num_tokens // 32
    ring, _ = shards.read(0, shards.num_tokens)
    starts = []
    for epoch in range(3):
        batch = rows.batch(epoch * rows.rows_per_epoch, rows.rows_per_epoch)
        found = [place_in(ring, ids.numpy()) for ids in batch.ids_BT]
        places = (np.array(found)[:, None] + np.arange(32)) % len(ring)
        assert len(np.unique(places)) == places.size > len(ring) - 32
        starts.append(found)
    assert len({tuple(sorted(found)) for found in starts}) == 3
    assert all(found != sorted(found) for found in starts)


def place_in(ring: np.ndarray, ids: np.ndarray) -> int:
    """Find where a row stands in the ring; rows of these texts are unique."""
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate((ring, ring[: len(ids) - 1])), len(ids))
    (place,) = np.flatnonzero((windows == ids).all(axis=1))
    return int(place)


def test_targets_are_the_next_tokens_and_the_next_beginning_ends_a_document(shards: Shards) -> None:
    batch = Batches(shards, sequence_length=16, seed=0).batch(0, 40)
    begins = batch.documents_BT[:, 1:] != batch.documents_BT[:, :-1]
    assert begins.any()
    assert torch.equal(batch.targets_BT[:, :-1], batch.ids_BT[:, 1:])
    assert (batch.ids_BT[:, 1:][begins] == 0).all()
    assert (batch.targets_BT != NO_TARGET).all()
    assert batch.ids_BT.dtype == batch.targets_BT.dtype == batch.documents_BT.dtype == torch.int64


def test_what_follows_an_end_token_is_no_target(llama_shards: Shards) -> None:
    batch = Batches(llama_shards, sequence_length=16, seed=0).batch(0, 40)
    ends = batch.ids_BT == 0
    assert ends.any()
    assert (batch.targets_BT[ends] == NO_TARGET).all()
    assert (batch.targets_BT[~ends] != NO_TARGET).all()
    assert (batch.targets_BT == 0).any()


def test_a_row_depends_on_nothing_but_the_shards_the_seed_and_its_number(shards: Shards) -> None:
    rows = Batches(shards, sequence_length=32, seed=3)
    late = rows.batch(1000, 4)
    fresh = Batches(Shards.open(shards.folder), sequence_length=32, seed=3)
    assert equal(late, fresh.batch(1000, 4))
    assert equal(late, pickle.loads(pickle.dumps(rows)).batch(1000, 4))
    parts = [fresh.batch(1000 + i, 1) for i in range(4)]
    assert torch.equal(late.ids_BT, torch.cat([part.ids_BT for part in parts]))
    assert not torch.equal(late.ids_BT, Batches(shards, sequence_length=32, seed=4).batch(1000, 4).ids_BT)
    assert not torch.equal(rows.batch(0, 4).ids_BT, rows.batch(rows.rows_per_epoch, 4).ids_BT)


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("kind", ["shards", "llama_shards"])
def test_documents_of_a_row_have_the_logits_that_each_has_by_itself(
    request: pytest.FixtureRequest, tiny_config: ModelConfig, kind: str, position: str
) -> None:
    shards: Shards = request.getfixturevalue(kind)
    torch.manual_seed(0)
    model = Transformer(replace(tiny_config, vocab_size=shards.vocab_size, position=position)).eval()
    batch = Batches(shards, sequence_length=64, seed=1).batch(0, 8)
    with torch.no_grad():
        packed = model(batch.ids_BT, batch.documents_BT)
        leaking = model(batch.ids_BT)
        alone, seen_whole = [], 0
        for ids_T, documents_T in zip(batch.ids_BT, batch.documents_BT, strict=True):
            runs = torch.unique_consecutive(documents_T, return_counts=True)[1].tolist()
            seen_whole += len(runs) - 2
            alone.append(torch.cat([model(part[None])[0] for part in ids_T.split(runs)]))
    assert seen_whole > 8
    # float32 sums in another order: 1.2e-7 measured. Without the documents' numbers the logits differ by 0.18 or more.
    assert torch.allclose(packed, torch.stack(alone), atol=2e-6, rtol=0)
    assert (leaking - packed).abs().max() > 0.1


def test_a_split_that_is_shorter_than_a_row_is_padded(shards: Shards) -> None:
    validation = Shards.open(shards.folder, "validation")
    (document,) = (validation.document(number) for number in range(validation.num_documents))
    rows = Batches(validation, sequence_length=len(document) + 10, seed=0)
    assert rows.rows_per_epoch == 1
    batch = rows.batch(0, 2)
    assert equal(rows.batch(1, 1), rows.batch(0, 1))
    length = len(document)
    assert batch.ids_BT[0, :length].tolist() == document.tolist()
    assert batch.targets_BT[0, :length].tolist() == [*document[1:].tolist(), 0]
    assert batch.targets_BT[0, length:].tolist() == [NO_TARGET] * 10
    assert set(batch.documents_BT[0, :length].tolist()).isdisjoint(batch.documents_BT[0, length:].tolist())
    # A row that is just as long needs no padding; one token more, and there is one place without a target.
    assert (Batches(validation, sequence_length=length, seed=0).batch(0, 1).targets_BT != NO_TARGET).all()
    one_more = Batches(validation, sequence_length=length + 1, seed=0).batch(0, 1)
    assert (one_more.targets_BT == NO_TARGET).sum() == 1


def test_a_row_names_its_documents(shards: Shards) -> None:
    rows = Batches(shards, sequence_length=64, seed=1)
    for row in range(5):
        numbers = set(rows.batch(row, 1).documents_BT[0].tolist())
        lines = [shards.place(number)[1] for number in numbers]
        file = shards.place(0)[0]
        assert rows.describe(row) == f"{file}:{min(lines)}-{max(lines)}"
    assert Batches(shards, sequence_length=1, seed=1).describe(0).startswith(f"{file}:")


def test_a_row_of_no_tokens_and_a_split_of_none_are_refused(shards: Shards, folder: Path) -> None:
    with pytest.raises(ConfigError, match="sequence_length is 0; it must be 1 or more"):
        Batches(shards, sequence_length=0, seed=0)
    config = PrepareConfig(workers=1, validation_fraction=0.0)
    prepare_shards([folder / "texts.jsonl"], folder / "all", folder / "tok", config)
    with pytest.raises(DataError, match="all has no documents in its validation split"):
        Batches(Shards.open(folder / "all", "validation"), sequence_length=8, seed=0)


def test_the_order_of_an_epoch_is_a_permutation() -> None:
    for size in (*range(1, 70), 255, 256, 257, 1000):
        order = RowOrder(size, seed=size, epoch=2)
        assert sorted(order[place] for place in range(size)) == list(range(size))
        with pytest.raises(IndexError, match=f"Place {size} of {size} rows"):
            order[size]


def test_the_order_never_changes_between_versions() -> None:
    # A run must resume after an upgrade: these are what the first version gave.
    assert [RowOrder(10, seed=7, epoch=0)[place] for place in range(10)] == [7, 6, 1, 0, 2, 3, 8, 5, 9, 4]
    assert [RowOrder(10**15, seed=7, epoch=3)[place] for place in range(3)] == [
        80847886251325,
        426572875722857,
        50458972074063,
    ]


def test_every_row_is_equally_likely_at_every_place() -> None:
    counts = np.zeros((7, 7))
    for seed in range(3000):
        order = RowOrder(7, seed=seed, epoch=0)
        for place in range(7):
            counts[place, order[place]] += 1
    # Chi-square of 36 degrees of freedom: above 80 once in 20,000; 44 measured.
    assert ((counts - 3000 / 7) ** 2 / (3000 / 7)).sum() < 80


def test_a_row_of_one_document_needs_no_mask():
    config = ModelConfig(
        model_type="llama", vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config)
    ids_BT = torch.randint(32, (3, 12))
    lengths = torch.tensor([12, 7, 1])
    is_padding_BT = torch.arange(12) >= lengths[:, None]
    documents_BT = torch.tensor([[4], [9], [9]]).expand(3, 12).masked_fill(is_padding_BT, PADDING)
    targets_BT = ids_BT.roll(-1, 1).masked_fill(is_padding_BT, NO_TARGET)
    batch = Batch(ids_BT=ids_BT, targets_BT=targets_BT, documents_BT=documents_BT)
    moved = batch.to(torch.device("cpu"))
    assert moved.documents_BT is None
    with torch.no_grad():
        masked, plain = model(ids_BT, documents_BT), model(ids_BT)
    # The same sums in two orders.
    assert torch.allclose(masked[~is_padding_BT], plain[~is_padding_BT], atol=1e-5)
    two = replace(batch, documents_BT=documents_BT.index_fill(1, torch.tensor([0]), 3))
    assert torch.equal(two.to(torch.device("cpu")).documents_BT, two.documents_BT)

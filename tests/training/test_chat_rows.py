"""ChatRows: whole conversations in rows, with the loss on what the assistant says, as a pure function of the row."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgelm.config import ModelConfig
from edgelm.errors import ChatTemplateError, ConfigError, DataError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.chats import Chats, load_chats
from edgelm_training.model import Transformer
from edgelm_training.rows.batches import NO_TARGET
from edgelm_training.rows.chat_rows import ChatRows
from edgelm_training.texts.tokenizer_training import TokenizerConfig, train_tokenizer

WORDS = ("the", "sea", "is", "wide", "and", "blue", "or", "grey", "it", "was", "so", "in", "the", "year", "1984")


def words(choice: random.Random) -> str:
    return " ".join(choice.choices(WORDS, k=choice.randint(1, 12)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and 40 conversations of one to three turns."""
    folder = tmp_path_factory.mktemp("chats")
    choice = random.Random(0)
    rows = [
        {"messages": [{"role": role, "content": words(choice)} for _ in range(1 + i % 3) for role in ROLES]}
        for i in range(40)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text(" ".join(WORDS) * 5)
    train_tokenizer([folder / "text.txt"], folder / "tok", TokenizerConfig(vocab_size=300))
    return folder


ROLES = ("user", "assistant")


@pytest.fixture(scope="module")
def chats(folder: Path) -> Chats:
    return load_chats([folder / "chats.jsonl"], folder / "tok")[0]


def lengths(chats: Chats) -> list[int]:
    return [len(chats[number][0]) for number in range(len(chats))]


def test_each_conversation_is_in_one_row_of_each_epoch_and_rows_are_full(chats: Chats) -> None:
    rows = ChatRows(chats, sequence_length=192, seed=1)
    assert rows.left_out == ()
    for epoch in range(2):
        batch = rows.batch(epoch * rows.rows_per_epoch, rows.rows_per_epoch)
        found = [number for row in batch.documents_BT for number in row.unique().tolist() if number >= 0]
        assert sorted(found) == list(range(40))
    assert (batch.documents_BT >= 0).float().mean() > 0.9
    assert sum(lengths(chats)) <= rows.rows_per_epoch * 192


def test_targets_are_what_the_assistant_says_and_the_end_of_its_turns(chats: Chats, folder: Path) -> None:
    batch = ChatRows(chats, sequence_length=192, seed=1).batch(0, 12)
    tokenizer = Tokenizer.load(folder / "tok")
    said: dict[int, str] = {}
    for targets, documents in zip(batch.targets_BT, batch.documents_BT, strict=True):
        for number in documents.unique().tolist():
            learned = [id_ for id_ in targets[documents == number].tolist() if id_ != NO_TARGET]
            if number >= 0:
                said[number] = tokenizer.decode(learned, skip_control_tokens=False)
            else:
                assert learned == []
    lines = [json.loads(line)["messages"] for line in (folder / "chats.jsonl").read_text().splitlines()]
    assert len(said) > 10
    for number, text in said.items():
        answers = [message["content"] for message in lines[number] if message["role"] == "assistant"]
        assert text == "".join(f"{answer}<|im_end|>" for answer in answers)


def test_a_target_is_the_token_that_follows(chats: Chats) -> None:
    batch = ChatRows(chats, sequence_length=128, seed=1).batch(0, 5)
    learned = batch.targets_BT[:, :-1] != NO_TARGET
    assert learned.any()
    assert torch.equal(batch.targets_BT[:, :-1][learned], batch.ids_BT[:, 1:][learned])
    assert torch.equal(batch.documents_BT[:, :-1][learned], batch.documents_BT[:, 1:][learned])
    assert batch.ids_BT.dtype == batch.targets_BT.dtype == batch.documents_BT.dtype == torch.int64


def test_conversations_of_a_row_do_not_see_each_other(chats: Chats, tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.from_dict({**tiny_config.to_dict(), "vocab_size": chats.vocab_size})).eval()
    batch = ChatRows(chats, sequence_length=128, seed=1).batch(0, 3)
    with torch.no_grad():
        packed = model(batch.ids_BT, batch.documents_BT)
        for row in range(3):
            for number in batch.documents_BT[row].unique().tolist():
                here = batch.documents_BT[row] == number
                alone = model(batch.ids_BT[row][here][None])[0]
                # float32 sums in another order: 1.2e-7 measured.
                assert torch.allclose(packed[row][here], alone, atol=2e-6, rtol=0)


def test_a_row_depends_on_nothing_but_the_chats_the_seed_and_its_number(chats: Chats, folder: Path) -> None:
    rows = ChatRows(chats, sequence_length=128, seed=1)
    again = load_chats([folder / "chats.jsonl"], folder / "tok")[0]
    for fresh in (ChatRows(again, sequence_length=128, seed=1), pickle.loads(pickle.dumps(rows))):
        assert torch.equal(fresh.batch(100, 2).targets_BT, rows.batch(100, 2).targets_BT)
        assert fresh.chats.fingerprint == chats.fingerprint
    everything = range(2 * rows.rows_per_epoch)
    assert rows.describe(0) != ChatRows(chats, sequence_length=128, seed=2).describe(0)
    order = [rows.describe(row) for row in everything]
    assert order[: rows.rows_per_epoch] != order[rows.rows_per_epoch :]
    assert sorted(order[: rows.rows_per_epoch]) == sorted(order[rows.rows_per_epoch :])


def test_a_row_names_its_conversations(chats: Chats) -> None:
    rows = ChatRows(chats, sequence_length=max(lengths(chats)), seed=1)
    for row in range(rows.rows_per_epoch):
        numbers = sorted(rows.batch(row, 1).documents_BT.unique().tolist())
        lines = [number + 1 for number in numbers if number >= 0]
        span = f"{lines[0]}" if len(lines) == 1 else f"{lines[0]}-{lines[-1]}"
        assert rows.describe(row) == f"{chats.places[0][0]}:{span}"


def test_a_conversation_that_does_not_fit_is_left_out_and_counted(chats: Chats) -> None:
    limit = sorted(lengths(chats))[20]
    rows = ChatRows(chats, sequence_length=limit, seed=1)
    assert rows.left_out == tuple(number for number, length in enumerate(lengths(chats)) if length > limit)
    assert 10 < len(rows.left_out) < 20
    found = rows.batch(0, rows.rows_per_epoch).documents_BT.unique().tolist()
    assert set(found) - {-1} == set(range(40)) - set(rows.left_out)


def test_packing_needs_few_rows(folder: Path) -> None:
    choice = random.Random(0)
    sizes = [choice.randint(1, 100) for _ in range(2000)]
    chats = Chats(
        token_ids=np.zeros(sum(sizes), np.int32),
        learned=np.ones(sum(sizes), bool),
        ends=np.cumsum(sizes),
        places=(("a", 1),) * 2000,
        vocab_size=1,
        tokenizer_hash="",
    )
    rows = ChatRows(chats, sequence_length=100, seed=0)
    # Best fit, the longest first: within 11/9 of the optimum at worst; 1.004 times as many as the tokens need measured.
    assert rows.rows_per_epoch <= 1.01 * sum(sizes) / 100


@pytest.mark.parametrize("fraction", [0.2, 1e-9])
def test_a_share_is_kept_out_of_training_by_what_is_said(folder: Path, fraction: float) -> None:
    train, validation = load_chats([folder / "chats.jsonl"], folder / "tok", validation_fraction=fraction)
    assert len(train) + len(validation) == 40
    assert 1 <= len(validation) <= (14 if fraction == 0.2 else 1)
    assert set(train.places).isdisjoint(validation.places)
    reversed_lines = (folder / "chats.jsonl").read_text().splitlines()[::-1]
    (folder / "reversed.jsonl").write_text("\n".join(reversed_lines))
    assert validation.places == tuple(sorted(validation.places))
    _, again = load_chats([folder / "reversed.jsonl"], folder / "tok", validation_fraction=fraction)
    assert sorted(line for _, line in again.places) == sorted(41 - line for _, line in validation.places)


def load(folder: Path, *rows: Any, **settings: Any) -> tuple[Chats, Chats]:
    (folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_chats([folder / "some.jsonl"], folder / "tok", **settings)


def test_the_only_conversation_is_one_to_learn_from(folder: Path) -> None:
    train, validation = load(folder, {"prompt": "Hi", "completion": "Hello!"}, validation_fraction=1e-9)
    assert (len(train), len(validation)) == (1, 0)


def test_what_is_said_twice_is_never_on_both_sides(folder: Path) -> None:
    rows = [{"prompt": text, "completion": "Hello!"} for text in ("Hi", "Ho", "Ho", "Hi")]
    sides = load(folder, *rows, validation_fraction=1e-9)
    assert sorted([line for _, line in side.places] for side in sides) == [[1, 4], [2, 3]]
    train, validation = load(folder, rows[0], rows[3], validation_fraction=1e-9)
    assert (len(train), len(validation)) == (2, 0)


def test_what_is_said_often_is_trained_on(folder: Path) -> None:
    for often, once in (("Hi", "Ho"), ("Ho", "Hi")):
        rows = [{"prompt": text, "completion": "Hello!"} for text in (often, once, often, often)]
        _, validation = load(folder, *rows, validation_fraction=1e-9)
        assert [line for _, line in validation.places] == [2]


def test_the_fingerprint_is_of_tokens_marks_ends_and_tokenizer(chats: Chats) -> None:
    others = [
        replace(chats, token_ids=chats.token_ids + 1),
        replace(chats, learned=~chats.learned),
        replace(chats, ends=chats.ends[1:]),
        replace(chats, tokenizer_hash="other"),
    ]
    assert len({chats.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_what_cannot_be_learned_from_is_named(folder: Path, tmp_path: Path) -> None:
    good = {"prompt": "Hi", "completion": "Hello!"}
    with pytest.raises(DataError, match=r"There is no conversation in .*some\.jsonl\."):
        load(folder)
    with pytest.raises(DataError, match=r"some\.jsonl:2: Cannot encode .* surrogate pair"):
        load(folder, good, {"prompt": "\ud83d", "completion": "Hello!"})
    with pytest.raises(
        DataError, match="All conversations \\(1\\) went to the validation split; choose a validation_fractio"
    ):
        load(folder, good, validation_fraction=1.0)
    with pytest.raises(DataError, match=r"There are no conversations in this split\."):
        ChatRows(load(folder, good)[1], sequence_length=64, seed=0)
    chats, _ = load(folder, good)
    with pytest.raises(DataError, match=r"No conversation fits into sequence_length 8; the shortest has \d+ tokens\."):
        ChatRows(chats, sequence_length=8, seed=0)
    with pytest.raises(ConfigError, match="sequence_length is 1; it must be 2 or more"):
        ChatRows(chats, sequence_length=1, seed=0)


def test_a_model_needs_a_chat_template_and_one_that_leaves_something_to_learn(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tok/tokenizer.json").read_bytes())
    with pytest.raises(ChatTemplateError, match=r"has no chat_template\.jinja, so nothing says how to write a conv"):
        load_chats([folder / "chats.jsonl"], tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('No.') }}")
    with pytest.raises(DataError, match=r"chats\.jsonl:1: The chat template refuses this conversation: No\."):
        load_chats([folder / "chats.jsonl"], tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    (folder / "one.jsonl").write_text(json.dumps({"messages": [{"role": "assistant", "content": "Hello!"}]}))
    with pytest.raises(DataError, match=r"one\.jsonl:1: the chat template leaves nothing of the assistant to learn\."):
        load_chats([folder / "one.jsonl"], tmp_path)

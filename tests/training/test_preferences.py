"""Preferences: the forms that are read, the rows that they become, and what is refused with its place."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from edgelm.errors import DataError
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.conversations.preferences import load_preferences, parse_preference
from edgelm_training.rows.batches import NO_TARGET
from edgelm_training.rows.preference_rows import PreferenceRows
from edgelm_training.texts.corpus import SourceFile

USER, BETTER, WORSE = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "assistant", "content": "What?"},
)
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
    "messages": {"prompt": [USER], "chosen": [BETTER], "rejected": [WORSE]},
    "whole conversations": {"chosen": [USER, BETTER], "rejected": [USER, WORSE]},
    "whole conversations and the prompt": {"prompt": "Hi", "chosen": [USER, BETTER], "rejected": [USER, WORSE]},
    "LLaMA-Factory's, as ShareGPT": {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello!"},
        "rejected": {"from": "gpt", "value": "What?"},
    },
    "LLaMA-Factory's, as OpenAI": {"conversations": [USER], "chosen": BETTER, "rejected": WORSE},
    "LLaMA-Factory's, as Alpaca": {"instruction": "Hi", "input": "", "chosen": "Hello!", "rejected": "What?"},
    "Orca's": {"system": "", "question": "Hi", "chosen": "Hello!", "rejected": "What?"},
}
FILE = SourceFile(path=Path("p.jsonl"), name="p.jsonl", kind="jsonl", gzipped=False)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str) -> None:
    chosen, rejected = parse_preference(FORMS[form], FILE, 3)
    assert (list(chosen.messages), chosen.learned) == ([USER, BETTER], {1})
    assert (list(rejected.messages), rejected.learned) == ([USER, WORSE], {1})
    assert chosen.place == "p.jsonl:3"


def test_of_parquet_only_what_a_preference_has_is_read(tiny_chat_model: Path, tmp_path: Path) -> None:
    dates = pyarrow.array([10**15], pyarrow.timestamp("ms"))  # which no Python can read
    when = {"at": datetime(2026, 1, 2)}  # no template takes it
    sides = {side: [[said | when for said in messages]] for side, messages in FORMS["messages"].items()}
    table = pyarrow.table({"sent": dates, **sides})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pairs, _ = load_preferences([tmp_path / "a.parquet"], tiny_chat_model)
    assert len(pairs) == 2
    pyarrow.parquet.write_table(table.append_column("image", [["a.jpg"]]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:1: image is 'a\.jpg', and only text can be learned"):
        load_preferences([tmp_path / "a.parquet"], tiny_chat_model)


def test_what_both_sides_share_is_not_learned() -> None:
    turns = [USER, BETTER, USER]
    chosen, rejected = parse_preference({"chosen": [*turns, BETTER], "rejected": [*turns, WORSE]}, FILE, 1)
    assert chosen.learned == rejected.learned == {3}


@pytest.mark.parametrize("form", FORMS)
def test_a_system_and_tools_stand_before_both_answers(form: str) -> None:
    values = {**FORMS[form], "system": "Be brief.", "tools": json.dumps([{"name": "add"}])}
    values["chat_template_kwargs"] = {"enable_thinking": False}
    for side in parse_preference(values, FILE, 1):
        assert side.messages[:2] == ({"role": "system", "content": "Be brief."}, USER)
        assert (side.learned, side.tools) == ({2}, [{"name": "add"}])
        assert side.variables == {"enable_thinking": False}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a side is missing": ({"prompt": "Hi", "chosen": "Hello!"}, "this is no preference: it has no rejected; expected"),
    "a picture": (
        {"images": ["a.jpg"], "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        r"images is \['a.jpg'\], and only text can be learned",
    ),
    "no field fits": ({"text": "Hi"}, "this is no preference: it has no chosen and no rejected"),
    "a side is a number": ({"prompt": "Hi", "chosen": "Hello!", "rejected": 3}, "the field 'rejected' is 3"),
    "an answer that is learned in parts": (
        {"prompt": "Hi", "chosen": [{"role": "assistant", "content": "A", "train_detail": [{}]}], "rejected": "B"},
        r"chosen\[0\] has a train_detail, and a message is learned as a whole",
    ),
    "tools of one": ({**FORMS["texts"], "tools": {}}, "tools is {}; it must be a list"),
    "no prompt": (
        {"chosen": "Hello!", "rejected": "What?"},
        r"there is no prompt \(.*\), and chosen is no list of",
    ),
    "the same": ({"prompt": "Hi", "chosen": "A", "rejected": "A"}, "chosen and rejected say the same"),
    "no answer": ({"chosen": [USER, USER], "rejected": [USER, WORSE]}, "chosen has no answer of the assistant"),
    "nothing shared": ({"chosen": [BETTER], "rejected": [WORSE]}, "chosen has no answer of the assistant to a prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_preference_is_named_with_its_line(name: str, tmp_path: Path, tiny_chat_model: Path) -> None:
    values, message = WRONG[name]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(FORMS["texts"]) + "\n" + json.dumps(values) + "\n")
    with pytest.raises(DataError, match=rf"pairs\.jsonl:2: {message}"):
        load_preferences([path], tiny_chat_model)


def test_an_empty_file_and_broken_json_are_named(tmp_path: Path, tiny_chat_model: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"There is no preference in .*pairs\.jsonl\."):
        load_preferences([path], tiny_chat_model)
    path.write_text('{"prompt": ')
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: broken JSON"):
        load_preferences([path], tiny_chat_model)


def test_a_pair_is_two_rows_with_targets_on_the_answers(tiny_chat_model: Path, tiny_preferences: Path) -> None:
    chats, held_out = load_preferences([tiny_preferences], tiny_chat_model, validation_fraction=0.1)
    assert len(chats) + len(held_out) == 80
    assert len(held_out) % 2 == 0
    rows = PreferenceRows(chats, sequence_length=128, seed=0)
    tokenizer = Tokenizer.load(tiny_chat_model)

    batch = rows.batch(0, 3)

    assert batch.ids_BT.shape[0] == 6
    learned = batch.targets_BT != NO_TARGET
    assert torch.equal(batch.targets_BT[:, :-1][learned[:, :-1]], batch.ids_BT[:, 1:][learned[:, :-1]])
    for pair in range(3):
        line = int(rows.describe(pair).rpartition(":")[2])
        said = [
            tokenizer.decode(batch.targets_BT[row][learned[row]].tolist(), skip_control_tokens=False)
            for row in (2 * pair, 2 * pair + 1)
        ]
        assert said == [f"It is {line - 1}.<|im_end|>", "No idea at all.<|im_end|>"]


def test_a_pair_is_left_out_for_either_answer_that_is_too_long(tiny_chat_model: Path, tmp_path: Path) -> None:
    long = "No. " * 30
    sides = [("Yes.", "No."), ("Yes.", long), (long, "No.")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": "Hi", "chosen": a, "rejected": b}) + "\n" for a, b in sides))
    chats, _ = load_preferences([path], tiny_chat_model)
    rows = PreferenceRows(chats, sequence_length=40, seed=0)
    assert (rows.left_out, rows.rows_per_epoch) == ((1, 2), 1)


def test_each_pair_comes_once_an_epoch_and_long_ones_never(tiny_chat_model: Path, tiny_preferences: Path) -> None:
    chats, _ = load_preferences([tiny_preferences], tiny_chat_model)
    rows = PreferenceRows(chats, sequence_length=128, seed=0)
    epochs = [[rows.describe(epoch * 40 + row) for row in range(40)] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == 40
    assert epochs[0] != epochs[1]
    longest = max(len(chats[number][0]) for number in range(80))
    short = PreferenceRows(chats, sequence_length=longest - 1, seed=0)
    assert 0 < len(short.left_out) < 40
    assert short.rows_per_epoch == 40 - len(short.left_out)
    assert short.batch(0, 1).ids_BT.shape[1] < longest
    with pytest.raises(DataError, match=r"No pair fits into sequence_length 4; the shortest needs \d+ tokens\."):
        PreferenceRows(chats, sequence_length=4, seed=0)
    _, nothing = load_preferences([tiny_preferences], tiny_chat_model)
    with pytest.raises(DataError, match=r"There are no preferences in this split\."):
        PreferenceRows(nothing, sequence_length=4, seed=0)

"""Shards that were changed, or are of something else, are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_files import change_json, edited_json
from sea_shards import prepare, write_corpus

from edgelm.errors import DataError
from edgelm.testing import tiny_model_path
from edgelm_training.texts.shards import Shards


@pytest.fixture(scope="module")
def prepared(tok: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_corpus(folder / "corpus")
    return prepare(tok, folder / "shards", paths=(str(folder / "corpus"),))


@pytest.fixture(autouse=True)
def shards(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with shards, which a test may change."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(prepared, Path("shards"))


def change_index(**values: Any) -> None:
    change_json(Path("shards/index.json"), **values)


def change_table(change: Callable[[Any], Any]) -> None:
    path = Path("shards/train-00000.idx.npy")
    np.save(path, change(np.load(path)))


def count_no_tokens() -> None:
    with edited_json(Path("shards/index.json")) as index:
        index["splits"]["train"][0]["tokens"] = 0


CHANGES: dict[str, tuple[Any, str]] = {
    "cut short": (lambda: os.truncate("shards/train-00000.bin", 100), r"train-00000\.bin has 100 bytes instead of"),
    "lost": (
        lambda: Path("shards/train-00000.bin").unlink(),
        r"train-00000\.bin is missing: the shards are incomplete",
    ),
    "index lost": (lambda: Path("shards/train-00000.idx.npy").unlink(), r"Cannot read shards/train-00000\.idx\.npy"),
    "index cut": (lambda: os.truncate("shards/train-00000.idx.npy", 90), r"Cannot read shards/train-00000\.idx\.npy"),
    "index of another": (
        lambda: np.save("shards/train-00000.idx.npy", np.ones((2, 3), np.uint64)),
        r"train-00000\.idx\.npy does not fit index\.json",
    ),
    "index of fewer documents": (
        lambda: change_table(lambda table: table[:, 1:]),
        r"idx\.npy does not fit index\.json",
    ),
    "index of signed numbers": (
        lambda: change_table(lambda table: table.astype(np.int64)),
        r"idx\.npy does not fit index\.json",
    ),
    "index of more tokens": (lambda: change_table(lambda table: table + 1), r"idx\.npy does not fit index\.json"),
    "grown": (
        lambda: os.truncate("shards/train-00000.bin", 1 << 20),
        r"train-00000\.bin has 1048576 bytes instead of",
    ),
    "tokenizer lost": (
        lambda: Path("shards/tokenizer.json").unlink(),
        r"shards/tokenizer\.json is not the tokenizer that made these shards",
    ),
    "tokenizer changed": (
        lambda: Path("shards/tokenizer.json").write_text(Path("shards/tokenizer.json").read_text() + " "),
        r"shards/tokenizer\.json is not the tokenizer that made these shards",
    ),
    "folder lost": (
        lambda: shutil.rmtree("shards"),
        r"shards is no folder of shards: it has no index\.json\. Make one",
    ),
    "json broken": (
        lambda: Path("shards/index.json").write_text("{"),
        r"Cannot read shards/index\.json: .*Prepare the",
    ),
    "a shard of no tokens": (count_no_tokens, "a count is no whole number above 0"),
    "json of another": (lambda: Path("shards/index.json").write_text("{}"), r"its index\.json is something else's"),
    "version": (
        lambda: change_index(version=9),
        r"shards of version 9; this edgelm reads version 1\. Prepare them again",
    ),
    "json of a list": (lambda: Path("shards/index.json").write_text("[]"), r"its index\.json is something else's"),
    "json too deep": (lambda: Path("shards/index.json").write_text("[" * 100_000), r"Cannot read shards/index\.json: "),
    "values": (lambda: change_index(tokenizer=3), r"shards/index\.json is broken \(TypeError\("),
    "keys": (lambda: change_index(splits={}), r"shards/index\.json is broken \(KeyError\('train'\)\)"),
}


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("change", CHANGES)
def test_shards_that_were_changed_are_refused(change: str) -> None:
    act, words = CHANGES[change]
    act()
    with pytest.raises(DataError, match=words):
        Shards.open("shards")


def test_a_token_beyond_the_vocabulary_is_found_when_it_is_read() -> None:
    shards = Shards.open("shards")
    path, beyond = Path("shards/train-00000.bin"), shards.vocab_size
    path.write_bytes(path.read_bytes()[:-2] + beyond.to_bytes(2, "little"))
    with pytest.raises(DataError, match=rf"shards holds the token {beyond}; its tokenizer's are 0 to {beyond - 1}\."):
        shards.read(shards.num_tokens - 5, 5)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match="There is no split 'test'; there are train and validation"):
        Shards.open("shards", "test")


def test_a_model_with_another_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"shards was prepared with another tokenizer than .*tokenizer\.json"):
        Shards.open("shards").check_tokenizer(tiny_model_path())


def test_the_fingerprint_is_of_what_is_learned(tok: Path, corpus: Path) -> None:
    shards = Shards.open("shards")
    assert Shards.open(prepare(tok, "other")).fingerprint == shards.fingerprint  # of a corpus in another folder
    assert Shards.open("shards", "validation").fingerprint == shards.fingerprint
    assert Shards.open(prepare(tok, "third", end_token="<|im_end|>")).fingerprint != shards.fingerprint
    splits = {**shards.index["splits"], "validation": []}
    changes = {
        "tokenizer": {**shards.index["tokenizer"], "vocab_size": 9},
        "start_token_ids": [9],
        "end_token_ids": [9],
    }
    for name, value in (changes | {"splits": splits}).items():
        assert Shards(shards.folder, "train", {**shards.index, name: value}).fingerprint != shards.fingerprint

"""Which documents of a corpus are trained on, and which are kept to validate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sea_shards import prepare, texts

from edgelm.errors import DataError
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.shards import SPLITS, Shards

pytestmark = pytest.mark.usefixtures("corpus")


def test_the_split_of_a_text_stays_when_the_corpus_grows(tok: Path, corpus: Path) -> None:
    before = set(texts(Shards.open(prepare(tok), "validation")))
    (corpus / "00 new.jsonl").write_text(json.dumps({"text": "New."}) + "\n" + json.dumps({"text": "Newer."}) + "\n")
    after = set(texts(Shards.open(prepare(tok), "validation")))
    assert before <= after <= before | {"New.", "Newer."}


def test_a_small_corpus_has_one_document_to_validate(tok: Path, corpus: Path) -> None:
    folder = prepare(tok, validation_fraction=0.0001)
    train, validation = Shards.open(folder), Shards.open(folder, "validation")
    assert (train.num_documents, validation.num_documents) == (134, 1)
    everything = Shards.open(prepare(tok, "all", validation_fraction=0.0))
    assert sorted(texts(train) + texts(validation)) == sorted(texts(everything))
    assert Shards.open("all", "validation").num_tokens == 0
    (moved,) = texts(validation)
    assert validation.place(0) == everything.place(texts(everything).index(moved))


def test_a_text_that_stands_several_times_is_never_on_both_sides(tok: Path) -> None:
    folder = Path("few")
    folder.mkdir()
    for number, text in enumerate(["The sea.", "The land.", "The land.", "The sea.", "The sea."]):
        (folder / f"{number}.txt").write_text(text)
    config = PrepareConfig(validation_fraction=1e-9, workers=1)
    prepare_shards([folder], "shards", tok, config)
    sides = [texts(Shards.open("shards", split)) for split in SPLITS]
    assert sorted(map(len, sides)) == [2, 3]
    assert set(sides[0]).isdisjoint(sides[1])

    prepare_shards([folder / "0.txt", folder / "3.txt"], "one", tok, config)
    assert [Shards.open("one", split).num_documents for split in SPLITS] == [2, 0]


def test_a_corpus_that_went_to_validation_as_a_whole_is_refused(tok: Path, corpus: Path) -> None:
    with pytest.raises(DataError, match=r"All documents went to the validation split.*0\.999999\. Choose a smaller"):
        prepare(tok, paths=("corpus/00.txt",), validation_fraction=0.999999)

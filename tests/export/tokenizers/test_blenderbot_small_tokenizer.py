"""The tokenizer of a BlenderbotSmall beside its class in transformers, on a small vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, pre_tokenizers, trainers
from transformers import BlenderbotSmallTokenizer

from edgelm.errors import CheckpointError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.sources.checkpoint_folder import read_text_files

SPECIAL = ["__null__", "__start__", "__end__", "__unk__", "__newln__"]
SENTENCES = ["hello there , how are you doing today ?", "the sea isn ' t blue ( it is grey ) .", "i like it !"] * 9
TEXTS = [
    "Hello there, how are you doing today?", "The sea isn't blue (it's grey).", "i like  it!!", "a", "a b c", "",
    "hello\nthere", "it'\nis", "hello.\n\nthere\n", "\nhello", "it.is,what?it(is)", "'hello'", ".'", "'.", "..",
    "café zoo", "__end__ hello", "hello\tthere", "thesea",
]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers saves it: vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = RustTokenizer(models.BPE(unk_token="__unk__", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=140, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ids = {}
    for token, id_ in model["vocab"].items():
        ids[token if token in SPECIAL else token.removesuffix("</w>") if token.endswith("</w>") else token + "@@"] = id_
    write(folder, ids, "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    return folder


def write(folder: Path, ids: dict[str, Any], merges: str) -> None:
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "blenderbot-small"}')


def rebuilt(folder: Path, out: Path) -> Tokenizer:
    for name, content in read_text_files(folder).items():
        (out / name).write_text(content, encoding="utf-8")
    return Tokenizer.load(out)


def test_texts_have_the_ids_of_transformers(published: Path, tmp_path: Path) -> None:
    ours, theirs = rebuilt(published, tmp_path), BlenderbotSmallTokenizer.from_pretrained(published)
    for text in TEXTS:
        if "__" not in text:  # a control token there
            assert ours.as_source(ours.encode(text)) == theirs(text).input_ids, text
    ids = ours.encode(TEXTS[0])
    assert ours.decode(ids) == theirs.decode(ids) + " " == "hello there , how are you doing today ? "
    assert ours.id_of("__end__") == theirs.eos_token_id not in ours.encode("__end__ hello")


def test_a_piece_that_the_vocabulary_lacks_has_an_id_of_no_model(published: Path, tmp_path: Path) -> None:
    ids = json.loads((published / "vocab.json").read_text())
    (piece,) = [token for token in ids if token == "hello"]
    del ids[piece]
    ids = {token: number for number, token in enumerate(ids)}
    (tmp_path / "source").mkdir()
    write(tmp_path / "source", ids, (published / "merges.txt").read_text().partition("\n")[2])
    tokenizer = rebuilt(tmp_path / "source", tmp_path)
    assert tokenizer.encode("hello") == [len(ids)]


@pytest.mark.parametrize(
    ("ids", "merges", "message"),
    [
        ({"__null__": 0}, "", "vocab.json lacks __start__, which has a role in a BlenderbotSmall"),
        ({token: i for i, token in enumerate(SPECIAL)}, "a b c\n", "merges.txt: line 2 has 3 pieces; a merge joins"),
        ({"__null__": "0"}, "", "the token '__null__' has the id '0'; ids are whole numbers"),
    ],
)
def test_broken_files_are_refused(ids: dict[str, Any], merges: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, ids, merges)
    with pytest.raises(CheckpointError, match=message):
        read_text_files(tmp_path)

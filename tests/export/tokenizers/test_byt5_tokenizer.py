"""The tokenizer of a ByT5, of which a folder has no file, beside transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_corpus import CORPUS_TEXTS
from transformers import ByT5Tokenizer

from edgelm.errors import CheckpointError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.sources.checkpoint_folder import read_text_files

TEXTS = [*CORPUS_TEXTS, "", " ", "  a  ", "\t\n", "\x00\x7f", "née <extra_id_0>", "\u20ac\U0001f600"]


def written(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("is_older", [False, True])
def test_each_byte_is_a_token_and_a_source_ends_as_in_transformers(is_older: bool, tmp_path: Path) -> None:
    theirs = ByT5Tokenizer()
    if is_older:  # as published: the class is named by the model, and tokens behind the bytes are counted
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "tokenizer_class": "ByT5Tokenizer"}))
    else:
        theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(written(tmp_path / "ours", read_text_files(tmp_path)))
    for text in TEXTS:
        expected = [byte + 3 for byte in text.encode()]
        assert list(ours.encode(text)) == expected
        assert ours.as_source(expected) == [*expected, 1]
        assert ours.decode(expected) == text
        if text.strip() and "<" not in text and "extra_id" not in text:
            assert theirs(text)["input_ids"] == [*expected, 1]
    for text, id_ in (("<extra_id_0>", 259), ("<extra_id_124>", 383)):
        assert ours.encode(text, control_tokens=True) == [id_] == [theirs.convert_tokens_to_ids(text)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"extra_ids": -1}, "tokenizer_config.json: extra_ids is -1; it must be a whole number from 0 to 1024"),
        (
            {"added_tokens_decoder": {"1": {"content": "<end>"}}},
            "token 1 is '<end>'; of a ByT5 the first are <pad>, </s>",
        ),
        (
            {"added_tokens_decoder": {"259": {"content": "</s>"}}},
            "tokenizer_config.json: token 259 is '</s>'; of a ByT5",
        ),
    ],
)
def test_tokens_in_other_places_are_refused_by_name(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"} | config))
    with pytest.raises(CheckpointError, match=message):
        read_text_files(tmp_path)

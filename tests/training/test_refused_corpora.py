"""What no shards are made of, and where none are written."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from sea_shards import contents, pieces, prepare

from edgelm.errors import ConfigError, DataError, TokenizerError
from edgelm_training.texts import shard_writer
from edgelm_training.texts.shard_writer import PrepareConfig
from edgelm_training.texts.shards import Shards

pytestmark = pytest.mark.usefixtures("corpus")


def test_a_broken_line_stops_with_its_file_and_line_and_is_not_tokenized_twice(
    tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 3000)
    good = (corpus / "rows.jsonl").read_text()
    (corpus / "rows.jsonl").write_text(good + '{"text": "no end')
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"^corpus/rows\.jsonl:51: broken JSON"):
            prepare(tok, workers=workers)
    assert not Path("shards").exists()
    kept = pieces()
    assert kept
    assert Shards.open(prepare(tok, skip_broken=True)).index["broken"] == 1
    (corpus / "rows.jsonl").write_text(good)
    assert Shards.open(prepare(tok)).index["broken"] == 0


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_corpus_is_refused_and_leaves_nothing(tok: Path, corpus: Path, content: str) -> None:
    Path("a.txt").write_text(content)
    with pytest.raises(DataError, match=r"The corpus is empty: there is no document in a\.txt\."):
        prepare(tok, paths=("a.txt",))
    assert not Path("shards").exists()


def test_a_corpus_of_broken_lines_alone_says_so(tok: Path, corpus: Path) -> None:
    Path("a.jsonl").write_text("{\n{\n")
    with pytest.raises(DataError, match=r"; 2 broken lines or documents left out\."):
        prepare(tok, paths=("a.jsonl",), skip_broken=True, split_on=None)


@pytest.mark.parametrize("settings", [{"validation_fraction": 1.0}, {"validation_fraction": -0.1}, {"workers": 0}])
def test_settings_out_of_range_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} is {next(iter(settings.values()))}; it must be"):
        PrepareConfig(**settings)


@pytest.mark.parametrize("name", ["notes.txt", "index.json", "train-00000.bin"])
def test_a_folder_of_something_else_is_never_replaced(tok: Path, corpus: Path, name: str) -> None:
    Path("shards").mkdir()
    Path("shards", name).write_text("{}")
    with pytest.raises(DataError, match="shards is not replaced: it exists and is no folder of shards"):
        prepare(tok)
    assert contents(Path("shards")) == {name: hashlib.sha256(b"{}").hexdigest()}


def test_shards_replace_no_file_of_somebody_else_and_lie_in_no_model_package(tok: Path, corpus: Path) -> None:
    prepare(tok)
    Path("shards/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"shards is not replaced: it holds notes\.txt, which is no part of shards"):
        prepare(tok)
    Path("edgelm.json").touch()
    with pytest.raises(DataError, match=r"shards is not written: .* is a model package"):
        prepare(tok)


def test_a_tokenizer_without_an_end_token_asks_for_one(tok: Path, corpus: Path) -> None:
    Path("bare").mkdir()
    shutil.copy(tok / "tokenizer.json", "bare")
    with pytest.raises(TokenizerError, match=r"Cannot read the eos_token of bare/tokenizer_config\.json.*--end-token"):
        prepare(Path("bare"))
    for content in ("[" * 100_000, "[]", '{"eos_token": {}}', "{"):
        Path("bare/tokenizer_config.json").write_text(content)
        with pytest.raises(TokenizerError, match=r"Cannot read the eos_token of bare/tokenizer_config\.json"):
            prepare(Path("bare"))
    Path("bare/tokenizer_config.json").write_text('{"eos_token": null}')
    with pytest.raises(TokenizerError, match=r"has no eos_token\. Name the token that ends a document: --end-token"):
        prepare(Path("bare"))
    with pytest.raises(TokenizerError, match=r"has no token '<end>'; its control tokens are '<\|endoftext\|>', "):
        prepare(Path("bare"), end_token="<end>")
    shards = Shards.open(prepare(Path("bare"), end_token="<|im_end|>"))
    assert shards.start_token_ids == (2,)
    Path("bare/tokenizer_config.json").write_text('{"eos_token": {"content": "<|pad|>"}}')
    assert Shards.open(prepare(Path("bare"))).start_token_ids == (3,)

"""Shards for tests, of a corpus that speaks of the sea."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from edgelm.text.tokenizer import Tokenizer
from edgelm_training.texts.documents import DocumentConfig
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.shards import Shards

SENTENCES = [f"Sentence {i} speaks of the sea, number {i * i}.\n" for i in range(40)]


def write_corpus(folder: Path) -> None:
    """Write 135 documents in five kinds of files."""
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02}.txt").write_text("".join(SENTENCES[i : i + 10]))
    (folder / "many.txt").write_text("<|endoftext|>\n".join("".join(SENTENCES[i : i + 5]) for i in range(30)))
    rows = [{"text": f"Row {i} of many: " + SENTENCES[i % 40] * (1 + i % 9)} for i in range(50)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pyarrow.Table.from_pylist([{"text": f"Parquet {i}: {SENTENCES[i]}"} for i in range(25)])
    pyarrow.parquet.write_table(table, folder / "table.parquet", row_group_size=10)


def prepare(tok: Path, output: str | Path = "shards", paths: tuple[str, ...] = ("corpus",), **settings: Any) -> Path:
    """Prepare with one worker, and with documents of many.txt separated."""
    documents = DocumentConfig(
        split_on=settings.pop("split_on", "<|endoftext|>"),
        skip_broken=settings.pop("skip_broken", False),
        max_characters=settings.pop("max_characters", 65_536),
    )
    config = PrepareConfig(documents=documents, **{"workers": 1, "validation_fraction": 0.1, **settings})
    prepare_shards(paths, output, tok, config)
    return Path(output)


def texts(shards: Shards) -> list[str]:
    """Decode the documents."""
    tokenizer = Tokenizer.load(shards.folder)
    return [tokenizer.decode(shards.document(number).tolist()) for number in range(shards.num_documents)]


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of each file in a folder of shards, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def pieces() -> dict[str, int]:
    """Return the finished pieces beside the unfinished shards, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(".shards.partial").glob("[0-9a-f]*.json")}

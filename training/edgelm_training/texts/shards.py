"""Shards: a tokenized corpus on disk, read through memory-mapped arrays.

A folder of shards holds

    index.json                  what the folder is: counts, hashes, sources, settings; written last
    train-00000.bin             token ids, one after another, little-endian uint16 or uint32
    train-00000.idx.npy         uint64 [2, documents]: where each document ends in the .bin, and where it came from
    validation-00000.bin, …     the other split
    tokenizer.json, …           the tokenizer that made the ids, for the checkpoints that are trained from them
"""

from __future__ import annotations

import hashlib
import json
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import DataError
from edgelm.package.manifest import is_plain_name, sha256_of

INDEX_FILE = "index.json"
FORMAT = "edgelm-shards"
VERSION = 1
SPLITS = ("train", "validation")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# In the second row of an .idx.npy: the number of the source file above, the line below.
LINE_BITS = 40
_DTYPES = {name: np.dtype(name) for name in ("<u2", "<u4")}
_END = 1 << 62  # of counts: what numpy adds up stays a whole number


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard, as index.json lists it."""

    name: str
    documents: int
    tokens: int
    sha256: str


class Shards:
    """One split of a folder of shards: all its documents, one after another, as one sequence of tokens.

    start_token_ids, end_token_ids: what stands around each document's own tokens. Where the tokenizer has one token for
    both jobs (`<|endoftext|>`), it begins each document, and `end_token_ids` is empty: the next document's beginning is
    this one's end.
    """

    def __init__(self, folder: Path, split: str, index: dict[str, Any]) -> None:
        self.folder = folder
        self.split = split
        self.index = index
        self.vocab_size: int = index["tokenizer"]["vocab_size"]
        self.tokenizer_hash: str = index["tokenizer"]["sha256"]
        self.start_token_ids: tuple[int, ...] = tuple(index["start_token_ids"])
        self.end_token_ids: tuple[int, ...] = tuple(index["end_token_ids"])
        self.dtype = _DTYPES[index["dtype"]]
        self.sources = [str(source["path"]) for source in index["sources"]]
        self.shards = [ShardEntry(**entry) for entry in index["splits"][split]]
        numbers = [self.vocab_size, *(number for shard in self.shards for number in (shard.documents, shard.tokens))]
        if not all(type(number) is int and 0 < number < _END for number in numbers):
            raise ValueError("a count is no whole number above 0")
        if not all(isinstance(shard.name, str) and is_plain_name(f"{shard.name}.idx.npy") for shard in self.shards):
            raise ValueError("the name of a shard is no plain file name")
        self.num_tokens = sum(shard.tokens for shard in self.shards)
        self.num_documents = sum(shard.documents for shard in self.shards)
        self._token_starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        self._document_starts = np.cumsum([0, *(shard.documents for shard in self.shards)])
        self._mapped: dict[int, tuple[NDArray[Any], NDArray[np.uint64]]] = {}

    @classmethod
    def open(cls, folder: str | Path, split: str = "train") -> Shards:
        """Open one split of what `edgelm data prepare` wrote, and check every file's size.

        The split may be empty: `num_tokens` is 0.

        Raises:
            DataError: the folder is missing, is something else, is incomplete, or was changed.
        """
        folder = Path(folder)
        if split not in SPLITS:
            raise DataError(f"There is no split {split!r}; there are {' and '.join(SPLITS)}.")
        index = read_index(folder)
        try:
            shards = cls(folder, split, index)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / INDEX_FILE} is broken ({error!r:.200}). Prepare the shards again.") from error
        shards._check_files()
        return shards

    def __getstate__(self) -> dict[str, Any]:
        # A process that gets a copy maps the files itself.
        return {**self.__dict__, "_mapped": {}}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the tokens of both splits, their order and their tokenizer: what a run's data is."""
        content = {key: self.index[key] for key in ("tokenizer", "start_token_ids", "end_token_ids", "splits")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def check_tokenizer(self, folder: str | Path) -> None:
        """Refuse a checkpoint whose tokenizer is not the one that made these shards.

        Raises:
            DataError: its tokenizer.json is another, or missing.
        """
        path = Path(folder) / TOKENIZER_FILES[0]
        if not path.is_file() or sha256_of(path) != self.tokenizer_hash:
            raise DataError(
                f"{self.folder} was prepared with another tokenizer than {path}: the token ids would mean other texts. "
                f"Prepare the shards again with --tokenizer {folder}."
            )

    def read(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return `count` tokens from place `first` on, and the number of each one's document; int64 both.

        The sequence is a ring: after its last token comes its first, in a document of a new number.
        """
        tokens: list[NDArray[np.int64]] = []
        documents: list[NDArray[np.int64]] = []
        turn = 0
        while count:
            shard = int(np.searchsorted(self._token_starts, first, "right")) - 1
            start = first - int(self._token_starts[shard])
            stop = min(start + count, self.shards[shard].tokens)
            ids, table = self._map(shard)
            tokens.append(ids[start:stop].astype(np.int64))
            ends = table[0]
            before, last = np.searchsorted(ends, (start, stop - 1), "right")
            begins = ends[before:last].astype(np.int64) - start
            if begins.size and not 0 <= begins.min() <= begins.max() < stop - start:
                raise self._misplaced(shard)
            numbers = np.zeros(stop - start, np.int64)
            numbers[begins] = 1
            numbers[0] = before + self._document_starts[shard] + turn * self.num_documents
            documents.append(np.cumsum(numbers))
            first, count = first + stop - start, count - (stop - start)
            if first == self.num_tokens:
                first, turn = 0, turn + 1
        self._check_ids(tokens)
        return np.concatenate(tokens), np.concatenate(documents)

    def document(self, number: int) -> NDArray[np.int64]:
        """Return the tokens of one document, with those that begin and end it."""
        shard, place = self._locate(number)
        ids, table = self._map(shard)
        start, end = int(table[0, place - 1]) if place else 0, int(table[0, place])
        if not start < end <= len(ids):
            raise self._misplaced(shard)
        return ids[start:end].astype(np.int64)

    def place(self, number: int) -> tuple[str, int]:
        """Return where a document stands: its file as it was named to `edgelm data prepare`, and its line there."""
        shard, place = self._locate(number % self.num_documents)
        packed = int(self._map(shard)[1][1, place])
        if packed >> LINE_BITS >= len(self.sources):
            raise self._misplaced(shard)
        return self.sources[packed >> LINE_BITS], packed & ((1 << LINE_BITS) - 1)

    def _misplaced(self, shard: int) -> DataError:
        path = self.folder / f"{self.shards[shard].name}.idx.npy"
        return DataError(
            f"{path} has a document where there is none: it was changed or damaged. Prepare the shards again."
        )

    def _locate(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._document_starts, number, "right")) - 1
        return shard, number - int(self._document_starts[shard])

    def _map(self, shard: int) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """Map a shard's files, once; what is mapped costs address space, and memory only where it is read."""
        if shard not in self._mapped:
            path = self.folder / self.shards[shard].name
            ids = np.memmap(f"{path}.bin", dtype=self.dtype, mode="r")
            # A plain array over the same mapping: slicing np.memmap is five times slower.
            self._mapped[shard] = ids.view(np.ndarray), np.load(f"{path}.idx.npy", mmap_mode="r").view(np.ndarray)
        return self._mapped[shard]

    def _check_ids(self, tokens: Sequence[NDArray[np.int64]]) -> None:
        largest = max((int(part.max()) for part in tokens), default=0)
        if largest >= self.vocab_size:
            raise DataError(
                f"{self.folder} holds the token {largest}; its tokenizer's are 0 to {self.vocab_size - 1}. A file was "
                "changed or damaged: prepare the shards again."
            )

    def _check_files(self) -> None:
        tokenizer = self.folder / TOKENIZER_FILES[0]
        if not tokenizer.is_file() or sha256_of(tokenizer) != self.tokenizer_hash:
            raise DataError(
                f"{tokenizer} is not the tokenizer that made these shards: the token ids would mean other texts. "
                "Prepare the shards again."
            )
        itemsize = self.dtype.itemsize
        for entry in self.shards:
            path = self.folder / f"{entry.name}.bin"
            size = path.stat().st_size if path.is_file() else None
            if size != entry.tokens * itemsize:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry.tokens * itemsize}"
                raise DataError(f"{path} {found}: the shards are incomplete. Prepare or copy them again.")
            path = self.folder / f"{entry.name}.idx.npy"
            try:
                table = np.load(path, mmap_mode="r")
            except (
                OSError,
                ValueError,
                EOFError,
                SyntaxError,
                tokenize.TokenError,
            ) as error:  # numpy parses its header
                raise DataError(f"Cannot read {path}: {error}. Prepare or copy the shards again.") from error
            if table.shape != (2, entry.documents) or table.dtype != np.uint64 or table[0, -1] != entry.tokens:
                raise DataError(f"{path} does not fit {INDEX_FILE}: prepare or copy the shards again.")


def read_index(folder: Path) -> dict[str, Any]:
    """Read index.json of a folder of shards.

    Raises:
        DataError: it is missing, broken, or of another version.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} is no folder of shards: it has no {INDEX_FILE}. Make one with `edgelm data prepare`."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {path}: {error}. Prepare the shards again.") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{folder} is no folder of shards: its {INDEX_FILE} is something else's.")
    if index.get("version") != VERSION:
        raise DataError(
            f"{folder} has shards of version {index.get('version')!r}; this edgelm reads version {VERSION}. "
            "Prepare them again."
        )
    return index

"""A piece: some spans of a corpus, tokenized by one worker into one shard of each split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.files import atomic
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.texts.corpus import SourceFile, Span
from edgelm_training.texts.document_tokens import DocumentTokens
from edgelm_training.texts.documents import Document, DocumentConfig, DocumentReader
from edgelm_training.texts.process_pool import check_stop
from edgelm_training.texts.shards import LINE_BITS, SPLITS, TOKENIZER_FILES, VERSION

# Documents that are encoded at once: enough for the library to work at its pace, few enough to stop soon.
_BATCH = 16
_FORMAT = 2  # of a piece on the disk; those of another are made again


@dataclass(frozen=True, kw_only=True)
class PieceSpan:
    """A span, its file, and the file's number and hash."""

    number: int
    sha256: str
    file: SourceFile
    span: Span


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What to tokenize, and how. size: about how many bytes it reads; folder: where it writes."""

    number: int
    spans: tuple[PieceSpan, ...]
    size: int
    folder: Path
    tokenizer: Path
    tokens: DocumentTokens
    documents: DocumentConfig
    validation_fraction: float

    @cached_property
    def name(self) -> str:
        """A hash of all that decides what the piece holds: what has this name need not be made again."""
        content = {
            "version": [VERSION, _FORMAT],
            "spans": [(part.number, part.sha256, part.file.kind, asdict(part.span)) for part in self.spans],
            "tokens": asdict(self.tokens),
            "documents": asdict(self.documents),
            "validation_fraction": self.validation_fraction,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class WrittenSplit:
    """The part of a piece in one split: its files are `{stem}.bin` and `{stem}.idx.npy`."""

    stem: str
    documents: int
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WrittenPiece:
    """What a worker made of a piece.

    broken: documents that were left out. separators: lines that stood between texts. lowest: the lowest hash of a
    training document, and the numbers of those that have it, which say the same.
    """

    number: int
    size: int
    splits: dict[str, WrittenSplit]
    broken: int
    separators: int
    lowest: tuple[int, list[int]] | None


def write_piece(piece: Piece) -> WrittenPiece:
    """Tokenize a piece into files of its folder, or find that this was done before.

    Raises:
        DataError: a document is broken; the message begins with its file and line.
        OSError: the disk is full.
    """
    done = piece.folder / f"{piece.name}.json"
    if done.exists():
        return _load(piece, json.loads(done.read_text(encoding="utf-8")))
    reader = DocumentReader(piece.documents)
    parts = {split: _Part(piece.tokens.dtype) for split in SPLITS}
    threshold = int(piece.validation_fraction * (1 << 64))
    lowest: tuple[int, list[int]] | None = None
    for span, document, ids in _encoded(piece, reader):
        hash_ = int.from_bytes(hashlib.blake2b(document.text.encode(), digest_size=8).digest(), "little")
        split = parts["validation" if hash_ < threshold else "train"]
        if hash_ >= threshold and (lowest is None or hash_ < lowest[0]):
            lowest = hash_, []
        if lowest is not None and hash_ == lowest[0]:
            lowest[1].append(split.documents)
        split.add((*piece.tokens.start, *ids, *piece.tokens.end), span.number << LINE_BITS | document.line)
    written = WrittenPiece(
        number=piece.number,
        size=piece.size,
        splits={split: part.write(piece.folder, f"{piece.name}.{split}") for split, part in parts.items()},
        broken=reader.broken,
        separators=reader.separators,
        lowest=lowest,
    )
    # Last: a piece with this file is complete.
    atomic.write_text(done, json.dumps(asdict(written)))
    return written


def move_to_validation(piece: WrittenPiece, moved: Collection[int], folder: Path, dtype: str) -> WrittenPiece:
    """Move the training documents of the numbers `moved` to the validation split, in files of new names."""
    train = piece.splits["train"]
    ids = np.fromfile(folder / f"{train.stem}.bin", dtype)
    ends, places = np.load(folder / f"{train.stem}.idx.npy").astype(np.int64)
    parts = {split: _Part(dtype) for split in SPLITS}
    for number, (start, end, place) in enumerate(zip([0, *ends[:-1]], ends, places, strict=True)):
        parts["validation" if number in moved else "train"].add(ids[start:end], int(place))
    splits = {split: part.write(folder, f"{train.stem}.moved.{split}") for split, part in parts.items()}
    return replace(piece, splits=splits, lowest=None)


class _Part:
    """The documents of one split, as they come."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._ids: list[NDArray[Any]] = []
        self._ends: list[int] = []
        self._places: list[int] = []
        self._tokens = 0

    @property
    def documents(self) -> int:
        return len(self._ends)

    def add(self, ids: Any, place: int) -> None:
        self._ids.append(np.asarray(ids, self._dtype))
        self._tokens += len(ids)
        self._ends.append(self._tokens)
        self._places.append(place)

    def write(self, folder: Path, stem: str) -> WrittenSplit:
        data = np.concatenate(self._ids).tobytes() if self._ids else b""
        if data:
            (folder / f"{stem}.bin").write_bytes(data)
            np.save(folder / f"{stem}.idx.npy", np.array([self._ends, self._places], np.uint64))
            for suffix in (".bin", ".idx.npy"):
                atomic.fsync_path(folder / f"{stem}{suffix}")
        sha256 = hashlib.sha256(data).hexdigest()
        return WrittenSplit(stem=stem, documents=self.documents, tokens=self._tokens, sha256=sha256)


def _load(piece: Piece, values: dict[str, Any]) -> WrittenPiece:
    splits = {split: WrittenSplit(**part) for split, part in values["splits"].items()}
    lowest = None if values["lowest"] is None else tuple(values["lowest"])
    return WrittenPiece(
        number=piece.number,
        size=piece.size,
        splits=splits,
        broken=values["broken"],
        separators=values["separators"],
        lowest=lowest,
    )


def _encoded(piece: Piece, reader: DocumentReader) -> Iterator[tuple[PieceSpan, Document, list[int]]]:
    """Yield the documents of a piece with their tokens."""
    tokenizer = _tokenizer(piece.tokenizer)
    documents = ((span, document) for span in piece.spans for document in reader.read(span.file, span.span))
    while batch := list(islice(documents, _BATCH)):
        check_stop()
        encoded = tokenizer.encode_batch([document.text for _, document in batch])
        for (span, document), ids in zip(batch, encoded, strict=True):
            yield span, document, ids


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer, which the parent process has tried before."""
    path = folder / TOKENIZER_FILES[0]
    return Tokenizer.parse(path.read_bytes(), path)

"""Write a folder of shards from a corpus: in parallel, the same bytes every time, going on after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgelm.errors import ConfigError, DataError
from edgelm.files import atomic
from edgelm.files.file_lock import file_lock
from edgelm.package.manifest import sha256_of
from edgelm.package.replaceable import foreign_entry, is_free, refuse_to_replace
from edgelm_training.texts.corpus import Progress, ScannedFile, SourceFile, find_files, scan_file, why_empty
from edgelm_training.texts.document_tokens import DocumentTokens
from edgelm_training.texts.documents import DocumentConfig
from edgelm_training.texts.piece import Piece, PieceSpan, WrittenPiece, move_to_validation, write_piece
from edgelm_training.texts.process_pool import available_cores, run_tasks
from edgelm_training.texts.shards import FORMAT, INDEX_FILE, SPLITS, TOKENIZER_FILES, VERSION, Shards, read_index

# About 256 pieces, so that every core has work and a kill costs little; but neither crumbs nor what does not fit into
# memory.
_PIECES = 256
_SMALLEST_PIECE, _LARGEST_PIECE = 1 << 20, 1 << 26
_LONGEST_CHARACTER = 4  # bytes of UTF-8
# Below this, hashing takes less time than starting processes for it.
_SCANNED_IN_PARALLEL = 1 << 28

_LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a corpus becomes shards.

    validation_fraction: the share of the documents that is kept out of training; which ones is decided by a hash of
    their text, so equal texts stay together, and a text stays on its side when the corpus grows. If it is above 0 and
    falls on no document, one text is taken. end_token: the token that ends a document, where it is not the tokenizer's
    eos_token. workers: processes; None is one for each core. It changes nothing in what is written.

    Raises:
        ConfigError: a value is out of range.
    """

    documents: DocumentConfig = field(default_factory=DocumentConfig)
    validation_fraction: float = 0.01
    end_token: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {self.validation_fraction}; it must be from 0 to below 1.")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; it must be 1 or more.")


@dataclass(frozen=True, kw_only=True)
class PreparedShards:
    """What `prepare_shards` did. unchanged: the folder was up to date, and nothing was written."""

    folder: Path
    index: dict[str, Any]
    unchanged: bool


def prepare_shards(
    paths: Sequence[str | Path],
    output: str | Path,
    tokenizer: str | Path,
    config: PrepareConfig | None = None,
    *,
    progress: Progress = lambda *_: None,
    waiting: Callable[[str], None] | None = None,
) -> PreparedShards:
    """Tokenize a corpus into a folder of shards, whole or not at all.

    The same corpus, tokenizer and settings give the same bytes. What is done is kept beside `output` until all is: a
    call after a kill or an error goes on from there. Shards that are up to date are left as they are.

    tokenizer: a folder with a tokenizer.json; it is copied into the shards. progress: is told of the bytes. waiting:
    called once if another process prepares the same output.

    Raises:
        ConfigError: the config's field, or line between texts, has nothing to be read from.
        DataError: there is no corpus, it is broken or empty, `output` holds something else, or the disk is full.
        TokenizerError: the tokenizer cannot be read, or has no end token.
        MissingExtraError: the corpus has Parquet files and pyarrow is not installed.
    """
    output, config = Path(output), config or PrepareConfig()
    files = find_files(paths)
    config.documents.check_fits(files)
    refuse_to_replace(output, _why_not_shards, DataError)
    target = output.resolve()
    work = target.with_name(f".{target.name}.partial")
    try:
        with file_lock(work / _LOCK, waiting, tidy=partial(_remove_if_empty, work)):
            prepared = _prepare(files, output, work, Path(tokenizer), config, progress)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"Cannot write {output}: {error}. What stood there is as it was; the same command goes on where it stopped."
        ) from error
    return prepared


def _remove_if_empty(work: Path) -> None:
    if work.is_dir() and {path.name for path in work.iterdir()} <= {_LOCK}:
        shutil.rmtree(work, ignore_errors=True)


def _prepare(
    files: list[SourceFile], output: Path, work: Path, tokenizer: Path, config: PrepareConfig, progress: Progress
) -> PreparedShards:
    tokens = DocumentTokens.of(tokenizer, end_token=config.end_token)
    workers = config.workers or available_cores()
    total = sum(file.path.stat().st_size for file in files)
    piece_bytes = min(max(total // _PIECES, _SMALLEST_PIECE), _LARGEST_PIECE)
    scanned = _scan(files, total, config, workers, progress)
    index = _index(files, scanned, tokenizer, tokens, config)
    if (finished := _finished(output, index)) is not None:
        return PreparedShards(folder=output, index=finished, unchanged=True)
    pieces = [
        Piece(
            number=number,
            spans=spans,
            size=size,
            folder=work,
            tokenizer=tokenizer,
            tokens=tokens,
            documents=config.documents,
            validation_fraction=config.validation_fraction,
        )
        for number, (spans, size) in enumerate(_group(files, scanned, piece_bytes))
    ]
    written = _write_pieces(pieces, workers, progress)
    _balance(written, work, tokens.dtype, config)
    index["broken"] = sum(piece.broken for piece in written)
    index["separators"] = sum(piece.separators for piece in written)
    with atomic.replace_folder(output) as staging:
        index["splits"] = {split: _collect(split, written, work, staging) for split in SPLITS}
        if not index["splits"]["train"]:
            raise DataError(_why_no_training(files, index))
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, staging / name)
        text = json.dumps(index, indent=1) + "\n"  # in ASCII: under Linux a file's name may be no UTF-8
        (staging / INDEX_FILE).write_text(text, encoding="utf-8", newline="\n")
    return PreparedShards(folder=output, index=index, unchanged=False)


def _scan(
    files: list[SourceFile], total: int, config: PrepareConfig, workers: int, progress: Progress
) -> list[ScannedFile]:
    """Hash every file, and cut it into spans, at places that depend on the file alone."""
    scan = partial(_scan_numbered, span_bytes=_SMALLEST_PIECE, config=config.documents)
    found: dict[int, ScannedFile] = {}
    done = 0
    for number, scanned in run_tasks(
        scan, list(enumerate(files)), workers=workers if total > _SCANNED_IN_PARALLEL else 1
    ):
        found[number] = scanned
        done += scanned.size
        progress("Reading", done, total)
    return [found[number] for number in range(len(files))]


def _scan_numbered(
    numbered: tuple[int, SourceFile], *, span_bytes: int, config: DocumentConfig
) -> tuple[int, ScannedFile]:
    number, file = numbered
    if file.kind == "text" and config.split_on is None:  # one document, which stays whole where it may be so long
        span_bytes = max(span_bytes, _LONGEST_CHARACTER * config.max_characters)
    return number, scan_file(file, span_bytes=span_bytes, separator=config.split_on)


def _index(
    files: list[SourceFile],
    scanned: list[ScannedFile],
    tokenizer: Path,
    tokens: DocumentTokens,
    config: PrepareConfig,
) -> dict[str, Any]:
    """Describe what decides the shards' content; the counts come later."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"sha256": tokens.tokenizer_hash, "vocab_size": tokens.vocab_size},
        "tokenizer_files": {
            name: sha256_of(tokenizer / name) for name in TOKENIZER_FILES if (tokenizer / name).is_file()
        },
        "start_token_ids": list(tokens.start),
        "end_token_ids": list(tokens.end),
        "dtype": tokens.dtype,
        "settings": {**asdict(config.documents), "validation_fraction": config.validation_fraction},
        "sources": [
            {"path": file.name, "bytes": scan.size, "sha256": scan.sha256}
            for file, scan in zip(files, scanned, strict=True)
        ],
    }


def _finished(output: Path, index: dict[str, Any]) -> dict[str, Any] | None:
    """Return the index of shards that are whole and were made of the same."""
    try:
        existing = read_index(output)
        if any(existing.get(key) != value for key, value in index.items()):
            return None
        for split in SPLITS:
            Shards.open(output, split)
    except DataError:
        return None
    return existing


def _group(
    files: list[SourceFile], scanned: list[ScannedFile], piece_bytes: int
) -> Iterator[tuple[tuple[PieceSpan, ...], int]]:
    """Yield the spans of each piece, and their bytes: as many as make `piece_bytes`, of one file or of several."""
    spans: list[PieceSpan] = []
    size = 0
    for number, (file, scan) in enumerate(zip(files, scanned, strict=True)):
        for span in scan.spans:
            spans.append(PieceSpan(number=number, sha256=scan.sha256, file=file, span=span))
            size += span.stop - span.start if file.kind != "parquet" else scan.size // len(scan.spans)
            if size >= piece_bytes:
                yield tuple(spans), size
                spans, size = [], 0
    if spans:
        yield tuple(spans), size


def _write_pieces(pieces: list[Piece], workers: int, progress: Progress) -> list[WrittenPiece]:
    total = sum(piece.size for piece in pieces)
    found: dict[int, WrittenPiece] = {}
    done = 0
    for written in run_tasks(write_piece, pieces, workers=workers):
        found[written.number] = written
        done += written.size
        progress("Tokenizing", done, total)
    return [found[piece.number] for piece in pieces]


def _balance(written: list[WrittenPiece], work: Path, dtype: str, config: PrepareConfig) -> None:
    """Give the validation split a text, if it is to have some and a small corpus left it without."""
    counts = {split: sum(piece.splits[split].documents for piece in written) for split in SPLITS}
    if not config.validation_fraction or counts["validation"]:
        return
    lowest = min((piece.lowest[0] for piece in written if piece.lowest is not None), default=None)
    moved = {
        piece.number: piece.lowest[1] for piece in written if piece.lowest is not None and piece.lowest[0] == lowest
    }
    if sum(map(len, moved.values())) < counts["train"]:
        for number, documents in moved.items():
            written[number] = move_to_validation(written[number], frozenset(documents), work, dtype)


def _collect(split: str, written: list[WrittenPiece], work: Path, staging: Path) -> list[dict[str, Any]]:
    """Give the pieces of a split their names as shards; return the entries for the index."""
    entries: list[dict[str, Any]] = []
    for part in (piece.splits[split] for piece in written):
        if part.tokens:
            name = f"{split}-{len(entries):05}"
            for suffix in (".bin", ".idx.npy"):
                _link(work / f"{part.stem}{suffix}", staging / f"{name}{suffix}")
            entries.append({"name": name, "documents": part.documents, "tokens": part.tokens, "sha256": part.sha256})
    return entries


def _link(source: Path, target: Path) -> None:
    """Link, so that a kill before the end loses nothing; where the file system has no links, copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _why_no_training(files: list[SourceFile], index: dict[str, Any]) -> str:
    if index["splits"]["validation"]:
        return (
            f"All documents went to the validation split: there are too few for validation_fraction "
            f"{index['settings']['validation_fraction']}. Choose a smaller one."
        )
    return why_empty(files, index["broken"])


def _why_not_shards(folder: Path) -> str | None:
    """Say why `folder` may not be replaced by shards; None: it is absent, empty, or one of ours."""
    if is_free(folder):
        return None
    try:
        if json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["format"] != FORMAT:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "it exists and is no folder of shards"
    own = (INDEX_FILE, *TOKENIZER_FILES, *(f"{split}-*{suffix}" for split in SPLITS for suffix in (".bin", ".idx.npy")))
    return foreign_entry(folder, own, "shards")

"""A corpus: the files that hold its documents, cut into spans that can be read independently."""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgelm.counted import counted
from edgelm.errors import DataError
from edgelm.extras import require
from edgelm_training.texts.process_pool import check_stop

# What a file holds, by its suffix; a file of another suffix that is named itself is taken as text.
KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
# What a folder is searched for. A .json file in it is more likely a setting than a corpus.
SEARCHED = tuple(suffix for suffix, kind in KINDS.items() if kind != "json")
# The same where only objects are wanted, not a README.md beside them.
SEARCHED_FOR_OBJECTS = tuple(suffix for suffix in SEARCHED if KINDS[suffix] != "text")
# Archives, and files that are compressed otherwise than by gzip.
_PACKED = (".7z", ".bz2", ".lz4", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
# What holds texts in forms of its own.
_DOCUMENTS = (".arrow", ".doc", ".docx", ".epub", ".feather", ".odt", ".pdf", ".pptx", ".xls", ".xlsx")
_ENDINGS_NAMED = 5
_BLOCK = 1 << 20

# Called with a label, what is done, and what is to do in all; None where nobody knows.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a corpus. name: its path as it was given; kind: a value of KINDS."""

    path: Path
    name: str
    kind: str
    gzipped: bool

    @property
    def cuttable(self) -> bool:
        """Whether reading can begin at any line."""
        return self.kind in ("text", "jsonl") and not self.gzipped


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a file: bytes start to stop - 1 (of Parquet: row groups), which begins with line `first_line`."""

    start: int
    stop: int
    first_line: int = 1


@dataclass(frozen=True, kw_only=True)
class ScannedFile:
    """What one reading of a file found: its hash, and spans that can be read independently."""

    size: int
    sha256: str
    spans: tuple[Span, ...]


def find_files(paths: Sequence[str | Path], *, searched: Sequence[str] = SEARCHED) -> list[SourceFile]:
    """Find the files that `paths` name: files, folders (searched to the bottom, in order of their names), and globs.

    A file that is named twice counts once. searched: the suffixes of what is taken of a folder.

    Raises:
        DataError: there is no path, one does not exist, or a glob or folder has no file to read.
    """
    if not paths or "" in paths:  # which is the working folder to pathlib
        raise DataError("There is no path to read texts from. Name files, folders or globs.")
    found: dict[str, SourceFile] = {}
    for path in map(str, paths):
        for name in _expand(path, searched):
            found.setdefault(os.path.realpath(name), _source_file(name))  # Path.resolve refuses a link to itself
    return list(found.values())


def describe_passed_over(paths: Sequence[str | Path], *, searched: Sequence[str] = SEARCHED) -> str | None:
    """Say which files of the folders that `paths` name are not taken by `find_files`, and how many; None: all are."""
    taken = {os.path.realpath(file.path) for file in find_files(paths, searched=searched)}
    matches = [match for path in map(str, paths) for match in (path, *glob.glob(path, recursive=True))]
    left = {os.path.realpath(file): file for match in matches if Path(match).is_dir() for file in _files(match)}
    counts = _count_endings(file for path, file in left.items() if path not in taken)
    if not counts:
        return None
    return (
        f"Passed over: {counts}. Of a folder, {', '.join(searched)} are read, and .gz of them; name others themselves."
    )


def _count_endings(files: Iterable[Path]) -> str:
    endings: Counter[str] = Counter()
    for file in files:
        suffix, gzipped = _suffix(file)
        endings[(suffix or "without a suffix") + (".gz" if gzipped else "")] += 1
    counts = [f"{count} {ending}" for ending, count in endings.most_common()]
    return ", ".join([*counts[:_ENDINGS_NAMED], *("…" for _ in counts[_ENDINGS_NAMED : _ENDINGS_NAMED + 1])])


def _files(folder: str) -> Iterator[Path]:
    """Yield a folder's files, those of linked folders too, each folder once; links that lead nowhere are among them."""
    seen: set[str] = set()
    for name, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        place = os.path.realpath(name)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        paths = {inner: Path(name, inner) for inner in (*folders, *files) if not inner.startswith(".")}
        # Links last, and in one order everywhere: a folder that a link leads to as well is called by its own name.
        folders[:] = sorted(paths.keys() & set(folders), key=lambda inner: (paths[inner].is_symlink(), inner))
        yield from (paths[file] for file in files if file in paths and _can_be_read(paths[file]))


def _refuse_folder(error: OSError) -> None:
    raise DataError(
        f"Cannot read the folder {error.filename}: {error.strerror}. Give yourself the right to, or name what is to be "
        "read without it."
    ) from error


def _can_be_read(path: Path) -> bool:
    return os.path.isfile(path) or _leads_nowhere(path)  # whoever reads that one says so


def _leads_nowhere(path: str | Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _expand(path: str, searched: Sequence[str]) -> list[str]:
    if Path(path).is_dir():
        files = list(_files(path))
        names = sorted(str(file) for file in files if _suffix(file)[0] in searched)
        if not names:
            others = f"; there are {_count_endings(files)}" if files else ""
            raise DataError(
                f"The folder {path} has no file to read: none of {', '.join(searched)}, nor .gz of them{others}."
            )
        return names
    if os.path.lexists(path):
        if not Path(path).is_file() and not _leads_nowhere(path):
            raise DataError(f"{path} is a pipe or a device; texts are read more than once. Write them to a file first.")
        return [path]
    if not glob.has_magic(path):
        raise DataError(f"There is no file {path}.")
    names = [name for match in sorted(glob.glob(path, recursive=True)) for name in _expand_match(match, searched)]
    if not names:
        raise DataError(f"No file matches {path}.")
    return names


def _expand_match(match: str, searched: Sequence[str]) -> list[str]:
    """A folder that a glob matches is searched, and may be empty of what can be read."""
    if Path(match).is_dir() and not any(_suffix(file)[0] in searched for file in _files(match)):
        return []
    return _expand(match, searched)


def _suffix(path: Path) -> tuple[str, bool]:
    gzipped = path.suffix.lower() == ".gz"
    return (path.with_suffix("") if gzipped else path).suffix.lower(), gzipped


def _source_file(name: str) -> SourceFile:
    if _leads_nowhere(name):
        raise DataError(
            f"{name} is a link to {os.readlink(name)}, where nothing is. Bring that back, or remove the link."
        )
    suffix, gzipped = _suffix(Path(name))
    kind = KINDS.get(suffix, "text")
    if kind == "parquet" and gzipped:
        raise DataError(f"{name}: Parquet compresses itself; unpack the .gz first.")
    if suffix in _PACKED:
        raise DataError(f"{name} is packed as {suffix}, which is not read. Unpack it; only .gz of one file may stay.")
    if suffix in _DOCUMENTS:
        raise DataError(
            f"{name} is no text but {suffix}, which is not read. Save what is in it as text in UTF-8, or its rows as "
            ".jsonl or .parquet (of a data set of Hugging Face: load_from_disk(…).to_parquet(…))."
        )
    return SourceFile(path=Path(name), name=name, kind=kind, gzipped=gzipped)


def broken_ones(count: int) -> str:
    """Say how many broken ones there are."""
    return counted(count, "broken line or document", "broken lines or documents")


def why_empty(files: Sequence[SourceFile], broken: int) -> str:
    """Say that files have no document, but for so many broken ones."""
    several = "" if len(files) == 1 else f"{len(files)} files, beginning with "
    left_out = f"; {broken_ones(broken)} left out" if broken else ""
    return f"The corpus is empty: there is no document in {several}{files[0].name}{left_out}."


def size_of(source: SourceFile) -> int:
    """Return the bytes of a file.

    Raises:
        DataError: it is gone, or cannot be read.
    """
    try:
        return source.path.stat().st_size
    except OSError as error:
        raise DataError(f"Cannot read {source.name}: {error}.") from error


def whole_span(source: SourceFile) -> Span:
    """Return the span that is the whole file.

    Raises:
        DataError: the file is gone, or is Parquet and broken.
        MissingExtraError: the file is Parquet, and pyarrow is not installed.
    """
    return Span(start=0, stop=len(_row_groups(source)) if source.kind == "parquet" else size_of(source))


def scan_file(source: SourceFile, *, span_bytes: int, separator: str | None = None) -> ScannedFile:
    """Hash a file, and cut it into spans of about `span_bytes`, each of which begins with a line.

    separator: the line that separates a text file's documents; its spans then begin after one.

    Raises:
        DataError: the file cannot be read.
        MissingExtraError: the file is Parquet, and pyarrow is not installed.
    """
    try:
        with source.path.open("rb") as file:
            size = file.seek(0, 2)
            ends = [size]
            if source.cuttable:
                mark = None if separator is None or source.kind != "text" else separator.encode("utf-8")
                ends = list(_ends(file, size, span_bytes, mark))
            file.seek(0)
            digest = hashlib.sha256()
            spans = []
            start, line = 0, 1
            for end in ends:
                spans.append(Span(start=start, stop=end, first_line=line))
                for block in _blocks(file, end - start):
                    check_stop()
                    digest.update(block)
                    line += block.count(b"\n")
                start = end
    except OSError as error:
        raise DataError(f"Cannot read {source.name}: {error}.") from error
    if source.kind == "parquet":
        spans = _row_groups(source)
    return ScannedFile(size=size, sha256=digest.hexdigest(), spans=tuple(spans) if size else ())


def _ends(file: IO[bytes], size: int, span_bytes: int, separator: bytes | None) -> Iterator[int]:
    """Yield where spans end: behind the first line (or separator line) after each multiple of `span_bytes`."""
    end = 0
    while end < size:
        file.seek(end + span_bytes)
        if file.tell() >= size:
            break
        file.readline()
        while separator is not None:
            line = file.readline()
            if not line or line.strip() == separator:
                break
        end = min(file.tell(), size)
        yield end
    if end < size:
        yield size


def _blocks(file: IO[bytes], count: int) -> Iterator[bytes]:
    while count and (block := file.read(min(count, _BLOCK))):
        yield block
        count -= len(block)


def _row_groups(source: SourceFile) -> list[Span]:
    parquet = require("pyarrow.parquet", "parquet", f"Reading {source.name}")
    try:
        metadata = parquet.read_metadata(source.path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{source.name} is not a Parquet file, or is cut short: {error}.") from error
    spans, row = [], 1
    for group in range(metadata.num_row_groups):
        spans.append(Span(start=group, stop=group + 1, first_line=row))
        row += metadata.row_group(group).num_rows
    return spans

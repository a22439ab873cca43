"""Documents: the texts of a corpus, read from spans of its files in bounded memory."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, cast

from edgelm.errors import ConfigError, DataError
from edgelm.extras import require
from edgelm_training.texts.corpus import SourceFile, Span

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_ROWS = 1024
LONGEST_DOCUMENT = 1 << 30  # characters
_UTF16 = "It is text in UTF-16: save it as UTF-8 in an editor, or convert it with iconv -f UTF-16 -t UTF-8."
_LONG_ENOUGH = 8  # bytes of a line, to tell UTF-16 from a few NULs
_OTHER_TEXT = (
    "Text in an older encoding (Latin-1, Windows-1252, …) is saved as UTF-8 in an editor, or converted with iconv."
)
_PICTURE = "It is a picture."
_FIRST_BYTES = {
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"PK\x03\x04": "It is a zip archive, as documents of Word and LibreOffice: save what is in it as text in UTF-8.",
    b"%PDF": "It is a PDF: save what is in it as text in UTF-8.",
    b"\xff\xd8\xff": _PICTURE,
    b"\x89PNG": _PICTURE,
}


class Document(NamedTuple):
    """One text, and the line (in Parquet and JSON arrays: the row) of its file where it begins, from 1."""

    line: int
    text: str


class Record(NamedTuple):
    """One object of a JSONL, JSON or Parquet file, and its line or row from 1."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DocumentConfig:
    """How files become documents.

    field: the key of a JSONL object, or the Parquet column, that holds the text. split_on: the line that separates the
    documents of a text file ("" for an empty line); None makes each file one document. max_characters: longer documents
    are cut, at the end of a paragraph if there is one near, and each part is a document of its own. skip_broken: leave
    out what cannot be read (and count it), instead of stopping.

    Raises:
        ConfigError: a value is out of range.
    """

    field: str = "text"
    split_on: str | None = None
    max_characters: int = 65_536
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if not self.field:
            raise ConfigError("field is empty; name the key or column that holds the text.")
        if self.split_on is not None and (self.split_on != self.split_on.strip() or "\n" in self.split_on):
            raise ConfigError(f"split_on is {self.split_on!r}; it must be one line without spaces at its ends.")
        if not 256 <= self.max_characters <= LONGEST_DOCUMENT:
            raise ConfigError(f"max_characters is {self.max_characters}; it must be from 256 to {LONGEST_DOCUMENT}.")

    def check_fits(self, files: Sequence[SourceFile]) -> None:
        """Refuse a field that is asked for where all files are text, and a line between texts where none is.

        Raises:
            ConfigError: it would change nothing.
        """
        texts = sum(file.kind == "text" for file in files)
        if self.field != DocumentConfig.field and texts == len(files):
            raise ConfigError(
                f"field is {self.field!r}, and {files[0].name} is read as text by its suffix, as are all files: "
                ".jsonl, .json and .parquet have fields. Leave it out, or write each row as a line of JSON (.jsonl)."
            )
        if self.split_on is not None and not texts:
            raise ConfigError(
                f"split_on is {self.split_on!r}, and no file is text: each row of {files[0].name} is a document. Leave "
                "it out."
            )


class DocumentReader:
    """Read the documents of spans.

    broken: how many were left out (`DocumentConfig.skip_broken`). separators: how many lines stood between texts.
    """

    def __init__(self, config: DocumentConfig) -> None:
        self.config = config
        self.broken = 0
        self.separators = 0

    def read(self, source: SourceFile, span: Span) -> Iterator[Document]:
        """Yield the documents of a span; texts of white space alone are none.

        Raises:
            DataError: something cannot be read; the message begins with the file and the line.
        """
        documents = self._texts(source, span) if source.kind == "text" else self._fields(source, span)
        for document in documents:
            for part in _parts(document, self.config.max_characters, counts_lines=source.kind == "text"):
                if part.text and not part.text.isspace():
                    yield part

    def _texts(self, source: SourceFile, span: Span) -> Iterator[Document]:
        """Yield a text file's documents, those that are too long in parts that `_parts` need not cut again."""
        first, size, lines = span.first_line, 0, list[str]()
        broken = False
        for number, line in read_lines(source, span):
            try:
                text = _decode(line, source, number)
            except DataError:
                if not self.config.skip_broken:
                    raise
                self.broken += not broken
                broken, lines, size = True, [], 0
                continue
            if text.strip() == self.config.split_on:
                self.separators += 1
                if not broken:
                    yield Document(first, "".join(lines))
                first, size, lines, broken = number + 1, 0, [], False
                continue
            if broken:
                continue
            lines.append(text)
            size += len(text)
            if size > 2 * self.config.max_characters:
                document = Document(first, "".join(lines))
                *whole, rest = _parts(document, self.config.max_characters, counts_lines=True)
                yield from whole
                first, size, lines = rest.line, len(rest.text), [rest.text]
        if not broken:
            yield Document(first, "".join(lines))

    def _fields(self, source: SourceFile, span: Span) -> Iterator[Document]:
        columns = [self.config.field]
        for line, values in read_records(source, span, columns=columns, on_error=self._skip_or_raise):
            try:
                text = self._text(values)
            except DataError as error:
                self._skip_or_raise(DataError(f"{source.name}:{line}: {error}"))
                continue
            yield Document(line, text)

    def _text(self, values: dict[str, Any]) -> str:
        field = self.config.field
        if field not in values:
            there = ", ".join(map(repr, values)) or "none"
            raise DataError(f"there is no field {field!r}; there are {there}. Name the one with the text: --field.")
        text = values[field]
        if not isinstance(text, str):
            found = "null" if text is None else type(text).__name__
            raise DataError(f"the field {field!r} is {found}; it must be a text.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            half = text[error.start]
            raise DataError(
                f"the field {field!r} has {half!r}, half of a surrogate pair, which is no character."
            ) from error
        return text

    def _skip_or_raise(self, error: DataError) -> None:
        if not self.config.skip_broken:
            raise error
        self.broken += 1


def _raise(error: DataError) -> None:
    raise error


def read_records(
    source: SourceFile,
    span: Span,
    *,
    columns: Collection[str] = (),
    telling: Collection[str] = (),
    on_error: Callable[[DataError], None] = _raise,
) -> Iterator[Record]:
    """Yield the objects of a span of a JSONL, JSON or Parquet file.

    columns: of a Parquet file, those to read. telling: those of them by which an object is known (none given: any); a
    file that has none of these is read whole, so that an error can name what there is. on_error: called with what is
    wrong with a line; if it returns, the line is left out.

    Raises:
        DataError: a line or the file is broken, with the file and the line named; or the file is of another kind.
    """
    if source.kind == "parquet":
        yield from _parquet_records(source, span, columns, telling or columns, on_error)
        return
    if source.kind == "text":
        raise DataError(
            f"{source.name} is read as text by its suffix; objects come in .jsonl, .json or .parquet files. Write each "
            'row as a line of JSON, such as {"prompt": "Hi", "completion": "Hello!"}, to a .jsonl file.'
        )
    lines = read_lines(source, span)
    if source.kind == "json":
        content = list(lines)
        whole = b"".join(line for _, line in content)
        if whole.lstrip().startswith(b"["):
            for _, values in _json_lines(source, iter([(1, whole)]), on_error):
                yield from _checked(source, enumerate(values, start=1), on_error)
            return
        lines = iter([(1, whole)] if _is_json(whole) else content)
    yield from _checked(source, _json_lines(source, lines, on_error), on_error)


def _checked(
    source: SourceFile, numbered: Iterator[tuple[int, Any]], on_error: Callable[[DataError], None]
) -> Iterator[Record]:
    for line, values in numbered:
        if isinstance(values, dict):
            yield Record(line, values)
        else:
            on_error(DataError(f"{source.name}:{line}: a line must be an object with fields; this is {values!r:.60}."))


def _json_lines(
    source: SourceFile, lines: Iterator[tuple[int, bytes]], on_error: Callable[[DataError], None]
) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            # Without its end, behind which an error would be at the first character of another line.
            yield number, json.loads(_decode(line, source, number).rstrip("\n"))
        except DataError as error:
            on_error(error)
        except json.JSONDecodeError as error:
            place = f"{source.name}:{number + error.lineno - 1}"
            on_error(DataError(f"{place}: broken JSON: {error.msg} at character {error.colno}."))
        except RecursionError:
            on_error(DataError(f"{source.name}:{number}: broken JSON: nested too deep."))
        except ValueError:  # of a number's length
            on_error(DataError(f"{source.name}:{number}: broken JSON: a number has too many digits to be read."))


def _is_json(content: bytes) -> bool:
    """Tell whether a file is one value, over however many lines. (Many a .json file holds lines.)"""
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _parquet_records(
    source: SourceFile,
    span: Span,
    columns: Collection[str],
    telling: Collection[str],
    on_error: Callable[[DataError], None],
) -> Iterator[Record]:
    parquet = require("pyarrow.parquet", "parquet", f"Reading {source.name}")
    try:
        with parquet.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            wanted = None if set(names).isdisjoint(telling) else [name for name in names if name in columns]
            line = span.first_line
            groups = range(span.start, span.stop)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, row_groups=groups, columns=wanted):
                for values in _rows(batch):
                    if isinstance(values, UnicodeDecodeError):
                        on_error(DataError(f"{source.name}:{line}: {_no_utf8(values)} Write the row anew."))
                    elif isinstance(values, OverflowError):
                        problem = f"a date or a duration is beyond those of Python ({values}). Leave that column out."
                        on_error(DataError(f"{source.name}:{line}: {problem}"))
                    else:
                        yield Record(line, {name: _without_missing(value) for name, value in values.items()})
                    line += 1
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"Cannot read {source.name}: {error}.") from error


def _without_missing(value: Any) -> Any:
    """Drop fields that are null: in Parquet, each call of a tool has the arguments of all others too."""
    if isinstance(value, dict):
        return {name: _without_missing(field) for name, field in value.items() if field is not None}
    return list(map(_without_missing, value)) if isinstance(value, list) else value


def _rows(batch: Any) -> Iterator[dict[str, Any] | UnicodeDecodeError | OverflowError]:
    """Yield the rows of a pyarrow.RecordBatch; in the place of one that Python cannot hold, its error."""
    try:
        yield from batch.to_pylist()  # of all, or of none
        return
    except (UnicodeDecodeError, OverflowError) as error:
        if batch.num_rows == 1:
            yield error
            return
    half = batch.num_rows // 2
    yield from _rows(batch.slice(0, half))
    yield from _rows(batch.slice(half))


def read_lines(source: SourceFile, span: Span) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a span, each with its number; a byte order mark is taken off, "\\r\\n" becomes "\\n".

    Raises:
        DataError: the file cannot be read, or its gzip stream is broken.
    """
    number = span.first_line
    try:
        with source.path.open("rb") as raw:
            file: BinaryIO = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if source.gzipped else raw
            left = None if source.gzipped else span.stop - span.start
            file.seek(span.start)
            while line := file.readline() if left is None else file.readline(left):
                if left is not None:
                    left -= len(line)
                if number == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield number, line[:-2] + b"\n" if line.endswith(b"\r\n") else line
                number += 1
    except (OSError, EOFError, zlib.error) as error:  # gzip's BadGzipFile is an OSError
        raise DataError(f"{source.name}:{number}: cannot read: {error}.") from error


def _decode(lines: bytes, source: SourceFile, number: int) -> str:
    """Decode a line of a file, or several; `number` is that of the first."""
    try:
        text = lines.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + lines.count(b"\n", 0, error.start)
        raise DataError(f"{source.name}:{line}: {_no_utf8(error)} {_what_instead(source)}") from error
    # Without a byte order mark, UTF-16 in Latin letters is UTF-8 too, in which each second character is a NUL. Longer
    # runs of them are in no text: a disk that lost its power leaves them in a log.
    if 3 * lines.count(0) >= len(lines):
        lines = re.sub(rb"\0{4,}", b"", lines)
    if len(lines) >= _LONG_ENOUGH and 3 * lines.count(0) >= len(lines):
        raise DataError(f"{source.name}:{number}: each second byte is 0. {_UTF16}")
    return text


def _no_utf8(error: UnicodeDecodeError) -> str:
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    return f"byte 0x{error.object[error.start]:02X} at column {column} is no UTF-8."


def _what_instead(source: SourceFile) -> str:
    """Say what a file that is no UTF-8 is by its first bytes, and what to do."""
    with source.path.open("rb") as file:
        first = file.read(max(map(len, _FIRST_BYTES)))
    return next((words for begin, words in _FIRST_BYTES.items() if first.startswith(begin)), _OTHER_TEXT)


def _parts(document: Document, limit: int, *, counts_lines: bool) -> Iterator[Document]:
    """Cut a document that is too long: at the last empty line, else line end, else space in the second half.

    counts_lines: whether the text's lines are lines of its file.
    """
    line, text = document
    start = 0
    while len(text) - start > limit:
        half, stop = start + limit // 2, start + limit
        found = ((text.rfind(mark, half, stop), len(mark)) for mark in ("\n\n", "\n", " "))
        end = next((place + length for place, length in found if place >= 0), stop)
        yield Document(line, text[start:end])
        line += text.count("\n", start, end) if counts_lines else 0
        start = end
    yield Document(line, text[start:])

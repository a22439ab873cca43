"""Documents: every kind of file gives its texts with their lines, and what is broken is named."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from edgelm import extras
from edgelm.errors import ConfigError, DataError, MissingExtraError
from edgelm_training.texts.corpus import Span, describe_passed_over, find_files, scan_file, whole_span
from edgelm_training.texts.documents import Document, DocumentConfig, DocumentReader, read_records

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a file below the current folder, from text, bytes, or objects (one a line)."""
    monkeypatch.chdir(tmp_path)

    def _write(name: str, content: str | bytes | list[Any]) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(item) + "\n" for item in content)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return _write


def read(name: str, **settings: Any) -> list[Document]:
    (file,) = find_files([name])
    return list(DocumentReader(DocumentConfig(**settings)).read(file, whole_span(file)))


def write_parquet(rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "a.parquet", row_group_size=2)


def test_a_text_file_is_one_document(write: Write) -> None:
    write("a.txt", "One.\n\nTwo.\n")
    assert read("a.txt") == [(1, "One.\n\nTwo.\n")]


@pytest.mark.parametrize(
    ("line", "separator"), [("<|endoftext|>", "<|endoftext|>"), ("  <|endoftext|> ", "<|endoftext|>"), ("", "")]
)
def test_a_line_can_separate_documents(write: Write, line: str, separator: str) -> None:
    write("a.txt", f"One\n1\n{line}\n{line}\nTwo\n{line}\nThree")
    assert read("a.txt", split_on=separator) == [(1, "One\n1\n"), (5, "Two\n"), (7, "Three")]


def test_windows_line_ends_and_a_byte_order_mark_are_taken_off(write: Write) -> None:
    write("a.txt", b"\xef\xbb\xbfOne\r\n\r\nTwo\r\n")
    assert read("a.txt") == [(1, "One\n\nTwo\n")]
    write("a.txt", "One\n\ufeffTwo\n")  # no mark there, but a character
    assert read("a.txt") == [(1, "One\n\ufeffTwo\n")]
    write("a.jsonl", b'\xef\xbb\xbf{"text": "One"}\r\n')
    assert read("a.jsonl") == [(1, "One")]


def test_texts_of_white_space_are_no_documents(write: Write) -> None:
    write("a.txt", " \n\n\t\n")
    write("b.jsonl", [{"text": ""}, {"text": "One"}, {"text": "\n"}])
    assert read("a.txt") == []
    assert read("b.jsonl") == [(2, "One")]


def test_a_long_document_is_cut_at_paragraphs_and_nothing_is_lost(write: Write) -> None:
    paragraphs = [f"Paragraph {i}\n" + f"which says {i} again and again.\n" * 5 + "\n" for i in range(40)]
    text = "".join(paragraphs)
    write("a.txt", text)
    parts = read("a.txt", max_characters=1000)
    assert "".join(part.text for part in parts) == text
    lines = text.splitlines()
    for part in parts:
        assert 500 < len(part.text) <= 1000 or part is parts[-1]
        assert part.text.startswith("Paragraph")
        assert lines[part.line - 1] == part.text.splitlines()[0]


@pytest.mark.parametrize(("mark", "whole"), [("\n", True), (" ", True), ("x", False)])
def test_a_document_without_paragraphs_is_cut_at_lines_else_spaces_else_anywhere(
    write: Write, mark: str, whole: bool
) -> None:
    text = f"abcdef{mark}" * 200
    write("a.jsonl", [{"text": text}, {"text": "short"}])
    *parts, last = read("a.jsonl", max_characters=300)
    assert last == (2, "short")
    assert "".join(part.text for part in parts) == text
    assert all(part.line == 1 and len(part.text) <= 300 for part in parts)
    assert all(part.text.endswith(mark) for part in parts) == whole


def test_a_document_is_cut_where_it_must_be_and_in_its_second_half(write: Write) -> None:
    whole, words = "word " * 59 + "words", "word " * 20 + "x" * 300
    write("a.jsonl", [{"text": whole}, {"text": words}])
    assert read("a.jsonl", max_characters=300) == [(1, whole), (2, words[:300]), (2, words[300:])]


def test_jsonl_gives_the_field_that_is_asked_for_and_skips_empty_lines(write: Write) -> None:
    write("a.jsonl", '{"text": "One", "n": 1}\n\n{"content": "Two", "text": "Zwei"}\n')
    assert read("a.jsonl") == [(1, "One"), (3, "Zwei")]
    write("b.ndjson", [{"content": "Two"}])
    assert read("b.ndjson", field="content") == [(1, "Two")]


def test_a_json_file_is_an_array_or_lines(write: Write) -> None:
    write("a.json", json.dumps([{"text": "One"}, {"text": "Two"}], indent=1))
    write("b.json", [{"text": "One"}, {"text": "Two"}])
    assert read("a.json") == read("b.json") == [(1, "One"), (2, "Two")]
    write("c.json", '{"text": "One"}')
    write("d.json", '{\n "text": "One"\n}\n')
    assert read("c.json") == read("d.json") == [(1, "One")]


def test_gzipped_files_are_read(write: Write) -> None:
    write("a.txt.gz", "One.\nTwo.\n")
    write("b.jsonl.gz", [{"text": "One"}])
    assert read("a.txt.gz") == [(1, "One.\nTwo.\n")]
    assert read("b.jsonl.gz") == [(1, "One")]


def test_a_row_of_parquet_that_is_no_utf8_is_named_and_can_be_left_out(write: Write) -> None:
    texts = [b"Text", b"caf\xe9", b"more", b"\xff", b"end"]
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())})
    pyarrow.parquet.write_table(table, "a.parquet")
    with pytest.raises(DataError, match=r"^a\.parquet:2: byte 0xE9 at column 4 is no UTF-8. Write the row anew\.$"):
        read("a.parquet")
    (file,) = find_files(["a.parquet"])
    reader = DocumentReader(DocumentConfig(skip_broken=True))
    assert list(reader.read(file, whole_span(file))) == [(1, "Text"), (3, "more"), (5, "end")]
    assert reader.broken == 2


def test_parquet_gives_rows_in_their_order(write: Write) -> None:
    write_parquet([{"text": f"Text {i}", "n": i} for i in range(5)])
    assert read("a.parquet") == [(i + 1, f"Text {i}") for i in range(5)]
    (file,) = find_files(["a.parquet"])
    spans = scan_file(file, span_bytes=1).spans
    assert [span.first_line for span in spans] == [1, 3, 5]
    reader = DocumentReader(DocumentConfig())
    assert [document for span in spans for document in reader.read(file, span)] == read("a.parquet")


@pytest.mark.parametrize("separator", [None, "--"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_spans_of_any_size_give_the_lines_of_the_whole_file(write: Write, name: str, separator: str | None) -> None:
    texts = [f"Text {i} " + "and so on " * (i % 7) for i in range(50)]
    lines = [json.dumps({"text": text}) for text in texts] if name == "a.jsonl" else "\n--\n".join(texts).split("\n")
    write(name, "\n".join(lines))
    (file,) = find_files([name])
    whole = read(name, split_on=separator)
    for span_bytes in (1, 50, 333, 1 << 20):
        scanned = scan_file(file, span_bytes=span_bytes, separator=separator)
        reader = DocumentReader(DocumentConfig(split_on=separator))
        documents = [document for span in scanned.spans for document in reader.read(file, span)]
        if name == "a.txt" and separator is None:
            assert "".join(document.text for document in documents) == whole[0].text
            assert all(lines[document.line - 1] == document.text.splitlines()[0] for document in documents)
        else:
            assert documents == whole
        assert (len(scanned.spans) > 3) == (span_bytes < 1000)


def test_files_folders_and_globs_are_found_in_order_and_once(write: Write) -> None:
    for name in ("c/2.txt", "c/1.jsonl", "c/deep/3.md", "c/.hidden/4.txt", "c/settings.json", "c/picture.png", "d.py"):
        write(name, "x")
    names = [file.name for file in find_files(["d.py", "c", "c/*.txt", "c/**/*.md"])]
    assert names == ["d.py", "c/1.jsonl", "c/2.txt", "c/deep/3.md"]
    assert [file.kind for file in find_files(["c/settings.json", "d.py"])] == ["json", "text"]


def test_a_folder_is_searched_for_every_kind_of_text_in_order_of_names(write: Write) -> None:
    names = ["a.TXT", "b.text", "c.md", "d.rst", "e.jsonl", "f.ndjson", "g.parquet", "h.jsonl.GZ", "i.txt.gz"]
    for name in reversed(names):
        write(f"c/{name}", "x")
    Path("c/folder.txt").mkdir()
    found = find_files(["c"])
    assert [file.name for file in found] == [f"c/{name}" for name in names]
    assert [file.kind for file in found] == [*["text"] * 4, "jsonl", "jsonl", "parquet", "jsonl", "text"]
    assert [file.name for file in found if file.gzipped] == ["c/h.jsonl.GZ", "c/i.txt.gz"]
    assert find_files(["c/*[a-i].*"]) == found


def test_what_a_folder_has_besides_is_counted_by_its_endings(write: Write) -> None:
    for name in ("c/1.txt", "c/2.jsonl.zst", "c/d/3.jsonl.zst", "c/4.csv.gz", "c/5", "c/.hidden.csv", "c/6.json"):
        write(name, "x")
    for paths in (["c"], ["c", "c/1.txt"], ["c**"]):
        counts, _, rest = (
            str(describe_passed_over(paths)).removeprefix("Passed over: ").partition(". Of a folder, .txt, ")
        )
        assert sorted(counts.split(", ")) == ["1 .csv.gz", "1 .json", "1 without a suffix", "2 .zst"]
        assert rest == ".text, .md, .rst, .jsonl, .ndjson, .parquet are read, and .gz of them; name others themselves."
    assert "1 .json" not in str(describe_passed_over(["c", "c/6.json"]))
    assert describe_passed_over(["c/1.txt"]) is None


def test_a_file_counts_once_however_it_is_named(write: Write) -> None:
    write("c/1.txt", "x")
    Path("link").symlink_to("c")
    assert [file.name for file in find_files(["c/1.txt", str(Path("c").resolve()), "link/../c", "link"])] == ["c/1.txt"]


def test_linked_folders_are_searched_each_folder_once(write: Write) -> None:
    write("elsewhere/deep/2.txt", "x")
    write("c/own/1.txt", "x")
    for link, target in (("books", "../elsewhere"), ("again", "own"), ("own/loop", "..")):
        Path("c", link).symlink_to(target, target_is_directory=True)
    assert [file.name for file in find_files(["c"])] == ["c/books/deep/2.txt", "c/own/1.txt"]
    Path("elsewhere/deep/2.txt").rename("elsewhere/deep/2.csv")
    assert str(describe_passed_over(["c"])).startswith("Passed over: 1 .csv.")


@pytest.mark.parametrize("target", ["../none", "gone.txt"])
@pytest.mark.parametrize("path", ["c", "c/*", "c/gone.txt"])
def test_a_link_that_leads_nowhere_is_refused(path: str, target: str, write: Write) -> None:
    write("c/1.txt", "x")
    Path("c/gone.txt").symlink_to(target)
    Path("c/gone.png").symlink_to("../none")  # nothing that is read
    if path == "c/*":
        Path("c/gone.png").unlink()
    with pytest.raises(DataError, match=re.escape(f"c/gone.txt is a link to {target}, where nothing is. Bring ")):
        find_files([path])


def test_a_folder_that_cannot_be_listed_is_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("c/1.txt", "x")
    write("c/locked/2.txt", "x")
    listed = os.scandir

    def scandir(path: str) -> Any:
        if path == "c/locked":
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root, who may run the tests, can list what is locked
    with pytest.raises(DataError, match=r"^Cannot read the folder c/locked: Permission denied\. Give"):
        find_files(["c"])


def test_globs_reach_to_the_bottom_and_pass_over_folders_without_a_text(write: Write) -> None:
    write("c/deep/deeper/1.md", "x")
    write("code/2.py", "x")
    for path in ("c/**/*.md", "c*"):
        assert [file.name for file in find_files([path])] == ["c/deep/deeper/1.md"]


def test_a_hidden_folder_that_is_named_itself_is_searched(write: Write) -> None:
    write(".c/1.txt", "x")
    assert [file.name for file in find_files([".c"])] == [".c/1.txt"]


def test_what_can_only_be_read_from_its_beginning_is_one_span(write: Write) -> None:
    write("a.jsonl.gz", [{"text": "One"}, {"text": "Two"}])
    write("a.txt.gz", "One\nTwo\n")
    write("a.json", '[{"text": "One"},\n{"text": "Two"}]')
    for name in ("a.jsonl.gz", "a.txt.gz", "a.json"):
        (file,) = find_files([name])
        assert scan_file(file, span_bytes=1).spans == (whole_span(file),)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.txt", "There is no file none.txt."),
        ("none/*.txt", "No file matches none/*.txt."),
        ("empty", "The folder empty has no file to read: none of .txt,"),
        ("a.parquet.gz", "Parquet compresses itself"),
        ("a.jsonl.zst", "a.jsonl.zst is packed as .zst, which is not read. Unpack it;"),
        ("a.tar.gz", "a.tar.gz is packed as .tar, which is not read. Unpack it;"),
        (
            "a.xlsx",
            "a.xlsx is no text but .xlsx, which is not read. Save what is in it as text in UTF-8, or its rows as",
        ),
        ("a.arrow", "load_from_disk(…).to_parquet(…)"),
        ("pipe", "pipe is a pipe or a device; texts are read more than once."),
    ],
)
def test_paths_without_a_corpus_are_named(write: Write, path: str, words: str) -> None:
    for name in ("a.parquet.gz", "a.jsonl.zst", "a.tar.gz", "a.xlsx", "a.arrow"):
        write(name, "x")
    Path("empty").mkdir()
    os.mkfifo("pipe")
    with pytest.raises(DataError) as caught:
        find_files([path])
    assert words in str(caught.value)


def test_no_path_at_all_is_refused() -> None:
    for paths in ([], [""]):
        with pytest.raises(DataError, match=r"There is no path to read texts from\. Name files, folders or globs\."):
            find_files(paths)


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "JSON": (
        "a.jsonl",
        '{"text": "One"}\n{"text": "Two"\n',
        "a.jsonl:2: broken JSON: Expecting ',' delimiter at character 15.",
    ),
    "deep JSON": ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl:1: broken JSON: nested too deep."),
    "deep JSON in an array": ("a.json", "[" * 100_000, "a.json:1: broken JSON: nested too deep."),
    "a long number": (
        "a.jsonl",
        '{"text": "One"}\n{"text": "Two", "n": ' + "1" * 5000 + "}\n",
        "a.jsonl:2: broken JSON: a number has too many digits to be read.",
    ),
    "JSON in an array": (
        "a.json",
        '[\n {"text": "One"},\n {"text": "Two" "n": 2}\n]\n',
        "a.json:3: broken JSON: Expecting ',' delimiter at character 17.",
    ),
    "no UTF-8 in an array": ("a.json", b'[\n {"text": "One"},\n {"text": "\xff"}]', "a.json:3: byte 0xFF at column 12"),
    "no object": ("a.jsonl", '{"text": "One"}\n["Two"]\n', "a.jsonl:2: a line must be an object with fields; this is"),
    "no object in an array": ("a.json", '[{"text": "One"}, 2]', "a.json:2: a line must be an object"),
    "no field": (
        "a.jsonl",
        '\n{"body": "One", "n": 2}\n',
        "a.jsonl:2: there is no field 'text'; there are 'body', 'n'",
    ),
    "null": ("a.jsonl", '{"text": null}\n', "a.jsonl:1: the field 'text' is null; it must be a text."),
    "a number": ("a.jsonl", '{"text": 5}\n', "a.jsonl:1: the field 'text' is int; it must be a text."),
    "half a character": (
        "a.jsonl",
        '{"text": "One"}\n{"text": "\\ud83d"}\n',
        "a.jsonl:2: the field 'text' has '\\ud83d', half of a surrogate pair, which is no character.",
    ),
    "no UTF-8": ("a.txt", b"One\nTw\xe4\n", "a.txt:2: byte 0xE4 at column 3 is no UTF-8."),
    "Latin-1": ("a.txt", "Tür".encode("latin-1"), "is no UTF-8. Text in an older encoding (Latin-1, Windows-1252, …)"),
    "UTF-16": ("a.txt", "One".encode("utf-16"), "is no UTF-8. It is text in UTF-16: save it as UTF-8 in an editor"),
    "UTF-16 without a mark": (
        "a.txt",
        "1\r\nTwo words".encode("utf-16-le"),
        "a.txt:2: each second byte is 0. It is text",
    ),
    "a document of Word": (
        "a.txt",
        b"PK\x03\x04\n\xff",
        "a.txt:2: byte 0xFF at column 1 is no UTF-8. It is a zip",
    ),
    "a PDF": ("a.txt", b"%PDF-1.7\n%\xe2\xe3", "is no UTF-8. It is a PDF: save what is in it as text"),
    "a picture": ("a.jpg", b"\xff\xd8\xff\xe0", "a.jpg:1: byte 0xFF at column 1 is no UTF-8. It is a picture."),
    "no UTF-8 in JSONL": ("a.jsonl", b'{"text": "One"}\n{"text": "\xff"}\n', "a.jsonl:2: byte 0xFF at column 11"),
    "no gzip": ("a.txt.gz", b"", "a.txt.gz:1: cannot read:"),
}


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named_with_file_and_line(write: Write, kind: str) -> None:
    name, content, words = BROKEN[kind]
    write(name, content)
    if kind == "no gzip":
        Path(name).write_bytes(b"plain text")
    with pytest.raises(DataError) as caught:
        read(name)
    assert words in str(caught.value)


def test_a_log_with_runs_of_nul_bytes_is_utf8(write: Write) -> None:
    content = "One\n" + "\0" * 30 + "Two\nThree" + "\0" * 50
    write("a.txt", content)
    assert read("a.txt") == [(1, content)]


def test_a_gzip_stream_that_is_cut_short_is_named(write: Write) -> None:
    write("a.txt.gz", "One.\n" * 1000)
    Path("a.txt.gz").write_bytes(Path("a.txt.gz").read_bytes()[:-12])
    with pytest.raises(DataError, match=r"^a\.txt\.gz:\d+: cannot read: .*end-of-stream"):
        read("a.txt.gz")


def test_a_gzip_stream_that_is_damaged_is_named(write: Write) -> None:
    write("a.txt.gz", "One.\n" * 1000)
    data = bytearray(Path("a.txt.gz").read_bytes())
    data[10:14] = b"\xff" * 4
    Path("a.txt.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"^a\.txt\.gz:1: cannot read: .*invalid"):
        read("a.txt.gz")


def test_broken_lines_and_documents_are_left_out_and_counted_where_that_is_asked_for(write: Write) -> None:
    write(
        "a.jsonl", b'{"text": "One"}\n{"text": "Two"\n{"body": 3}\n{"text": 4}\n[5]\n{"text": "Six"}\n{"text": "\xe4"}'
    )
    write("b.txt", b"One\n--\nTw\xe4\nT\xf6\n" + b"which is long.\n" * 50 + b"--\nThree\n")
    reader = DocumentReader(DocumentConfig(skip_broken=True, split_on="--", max_characters=256))
    documents = [
        document for file in find_files(["a.jsonl", "b.txt"]) for document in reader.read(file, whole_span(file))
    ]
    assert documents == [(1, "One"), (6, "Six"), (1, "One\n"), (56, "Three\n")]
    assert reader.broken == 6


def test_a_missing_column_of_parquet_is_named_with_those_there_are(write: Write) -> None:
    write_parquet([{"body": "One", "n": 1}])
    with pytest.raises(DataError, match=r"a\.parquet:1: there is no field 'text'; there are 'body', 'n'\."):
        read("a.parquet")


def test_a_file_that_is_no_parquet_is_named(write: Write) -> None:
    write("a.parquet", "PAR1 not quite")
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file, or is cut short"):
        read("a.parquet")
    with pytest.raises(DataError, match=r"Cannot read a\.parquet"):
        list(read_records(find_files(["a.parquet"])[0], Span(start=0, stop=1)))


def test_parquet_without_pyarrow_names_the_pip_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.parquet", "PAR1")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        MissingExtraError, match=r"a\.parquet needs 'pyarrow.parquet'.*pip install \"edgelm\[parquet\]\""
    ):
        read("a.parquet")


def test_a_field_of_texts_and_a_line_between_rows_are_refused(write: Write) -> None:
    write("a.csv", "review,label\nGood,1\n")
    write("b.jsonl", [{"review": "Good"}])
    csv, rows = find_files(["a.csv", "b.jsonl"])
    field, line = DocumentConfig(field="review"), DocumentConfig(split_on="")
    with pytest.raises(
        ConfigError, match=r"field is 'review', and a\.csv is read as text by its suffix, as are all file"
    ):
        field.check_fits([csv])
    with pytest.raises(ConfigError, match=r"split_on is '', and no file is text: each row of b\.jsonl is a document\."):
        line.check_fits([rows])
    for config in (field, line):
        config.check_fits([csv, rows])


def test_a_text_file_has_no_records(write: Write) -> None:
    write("a.txt", "x")
    with pytest.raises(DataError, match=r"a\.txt is read as text by its suffix; .*Write each row as a line of"):
        list(read_records(find_files(["a.txt"])[0], Span(start=0, stop=1)))


def test_a_file_that_cannot_be_read_is_named(write: Write) -> None:
    write("a.txt", "x")
    (file,) = find_files(["a.txt"])
    Path("a.txt").unlink()
    with pytest.raises(DataError, match=r"Cannot read a\.txt"):
        scan_file(file, span_bytes=10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"field": ""}, "field is empty"),
        ({"split_on": "a\nb"}, "split_on is 'a\\nb'; it must be one line"),
        ({"split_on": " a"}, "split_on is ' a'; it must be one line without spaces"),
        ({"max_characters": 255}, "max_characters is 255; it must be from 256 to 1073741824"),
        ({"max_characters": 10**23}, f"max_characters is {10**23}; it must be from 256 to"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DocumentConfig(**settings)
    assert words in str(caught.value)

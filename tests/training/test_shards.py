"""Shards: the same bytes every time, whatever interrupts the writing."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from sea_shards import SENTENCES, contents, pieces, prepare, texts
from tokenizers.processors import TemplateProcessing

from edgelm.errors import DataError
from edgelm.files.file_lock import file_lock
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.texts import piece, process_pool, shard_writer
from edgelm_training.texts.corpus import find_files, scan_file
from edgelm_training.texts.document_tokens import DocumentTokens
from edgelm_training.texts.documents import DocumentConfig
from edgelm_training.texts.process_pool import run_tasks
from edgelm_training.texts.shard_writer import PrepareConfig, prepare_shards
from edgelm_training.texts.shards import SPLITS, Shards

pytestmark = pytest.mark.usefixtures("corpus")


def test_every_document_is_in_one_split_and_decodes_to_its_text(tok: Path, corpus: Path) -> None:
    folder = prepare(tok)
    train, validation = Shards.open(folder), Shards.open(folder, "validation")
    expected = [(corpus / f"{i:02}.txt").read_text() for i in range(30)]
    expected += (corpus / "many.txt").read_text().split("<|endoftext|>\n")
    expected += [json.loads(line)["text"] for line in (corpus / "rows.jsonl").read_text().splitlines()]
    expected += pyarrow.parquet.read_table(corpus / "table.parquet")["text"].to_pylist()
    assert sorted(texts(train) + texts(validation)) == sorted(expected)
    assert texts(train) == [text for text in expected if text in set(texts(train))]
    # A hash decides, so 135 documents at 0.1 are not exactly 13 or 14.
    assert 5 <= validation.num_documents <= 25
    assert train.num_tokens == sum(len(train.document(i)) for i in range(train.num_documents))


def test_the_place_of_a_document_is_its_file_and_line(tok: Path, corpus: Path) -> None:
    shards = Shards.open(prepare(tok, validation_fraction=0.0))
    places = [shards.place(number) for number in range(shards.num_documents)]
    assert places[:2] == [("corpus/00.txt", 1), ("corpus/01.txt", 1)]
    assert places[30:33] == [("corpus/many.txt", 1), ("corpus/many.txt", 7), ("corpus/many.txt", 13)]
    assert places[60:62] == [("corpus/rows.jsonl", 1), ("corpus/rows.jsonl", 2)]
    assert places[-1] == ("corpus/table.parquet", 25)


def test_any_number_of_workers_writes_the_same_bytes(tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 3000)
    monkeypatch.setattr(shard_writer, "_SCANNED_IN_PARALLEL", 0)
    one, three = prepare(tok, "one"), prepare(tok, "three", workers=3)
    assert contents(one) == contents(three)
    assert len(Shards.open(one).shards) > 5


def test_many_shards_are_read_as_one_sequence(tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Shards.open(prepare(tok, "whole"))
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 3000)
    shards = Shards.open(prepare(tok, "cut"))
    assert len(whole.shards) == 1
    assert len(shards.shards) > 5
    ids, documents = shards.read(0, shards.num_tokens)
    assert np.array_equal(ids, whole.read(0, whole.num_tokens)[0])
    assert np.array_equal(documents, np.repeat(range(135)[: shards.num_documents], lengths(shards)))
    for start in (0, 1, 777, shards.num_tokens - 5):
        ids, documents = shards.read(start, 400)
        places = np.arange(start, start + 400)
        assert np.array_equal(ids, np.take(whole.read(0, whole.num_tokens)[0], places, mode="wrap"))
        # The ring's second turn has documents of new numbers.
        expected = np.take(np.repeat(range(shards.num_documents), lengths(shards)), places, mode="wrap")
        assert np.array_equal(documents, expected + shards.num_documents * (places >= shards.num_tokens))


def test_a_text_that_may_be_so_long_is_one_document(tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus is cut into spans for its workers; a file that holds one document is none of two."""
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 1000)
    (tmp_path / "long.txt").write_text("The sea is blue.\n\n" * 200)
    (tmp_path / "next.txt").write_text("Another.")
    config = PrepareConfig(documents=DocumentConfig(max_characters=4000), validation_fraction=0.0, workers=1)
    prepare_shards([tmp_path / "long.txt", tmp_path / "next.txt"], tmp_path / "shards", tok, config)
    assert Shards.open(tmp_path / "shards").num_documents == 2


def lengths(shards: Shards) -> list[int]:
    return [len(shards.document(number)) for number in range(shards.num_documents)]


def test_what_is_up_to_date_is_left_alone_and_what_is_not_is_made_again(tok: Path, corpus: Path) -> None:
    folder = prepare(tok)
    inode = folder.stat().st_ino
    assert prepare_again(tok).unchanged
    assert folder.stat().st_ino == inode
    (corpus / "05.txt").write_text("Another text.")
    before = Shards.open(folder).fingerprint
    assert not prepare_again(tok).unchanged
    assert Shards.open(folder).fingerprint != before
    (folder / "train-00000.bin").write_bytes(b"")
    assert not prepare_again(tok).unchanged
    assert Shards.open(folder).num_tokens > 0


@pytest.mark.parametrize(
    "changes",
    [{"validation_fraction": 0.3}, {"max_characters": 300}, {"end_token": "<|im_end|>"}, {"tokenizer": "new"}],
)
def test_what_was_made_in_another_way_is_made_again(tok: Path, corpus: Path, changes: dict[str, Any]) -> None:
    settings = {name: value for name, value in changes.items() if name != "tokenizer"}
    prepare(tok)
    before = Path("shards").stat().st_ino
    shutil.copytree(tok, "new")
    Path("new/chat_template.jinja").write_text("another")
    prepare(Path(changes["tokenizer"]) if "tokenizer" in changes else tok, **settings)
    assert Path("shards").stat().st_ino != before


def prepare_again(tok: Path) -> shard_writer.PreparedShards:
    config = PrepareConfig(documents=DocumentConfig(split_on="<|endoftext|>"), workers=1, validation_fraction=0.1)
    return prepare_shards(["corpus"], "shards", tok, config)


def test_the_folder_has_the_tokenizer_and_no_leftovers(tok: Path, corpus: Path) -> None:
    folder = prepare(tok)
    assert (folder / "tokenizer.json").read_bytes() == (tok / "tokenizer.json").read_bytes()
    assert (folder / "chat_template.jinja").exists()
    assert sorted(path.name for path in Path().iterdir()) == ["corpus", "shards"]
    assert Shards.open(folder).tokenizer_hash == hashlib.sha256((tok / "tokenizer.json").read_bytes()).hexdigest()
    Shards.open(folder).check_tokenizer(tok)


def test_a_text_that_spells_a_control_token_is_text(tok: Path, corpus: Path) -> None:
    Path("a.txt").write_text("Do not <|im_end|> me.")
    shards = Shards.open(prepare(tok, paths=("a.txt",)))
    end = Tokenizer.load(tok).id_of("<|endoftext|>")
    ids = shards.document(0).tolist()
    assert ids[0] == end
    assert not Tokenizer.load(tok).control_token_ids & set(ids[1:])


def test_a_tokenizer_with_a_beginning_of_its_own_keeps_it_and_ends_documents(tok: Path, corpus: Path) -> None:
    rust = tokenizers.Tokenizer.from_file(str(tok / "tokenizer.json"))
    rust.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    shutil.copytree(tok, "llama")
    rust.save("llama/tokenizer.json")
    shards = Shards.open(prepare(Path("llama"), paths=("corpus/00.txt",)))
    ids = shards.document(0).tolist()
    assert (ids[0], ids[-1]) == (1, 0)
    assert (shards.start_token_ids, shards.end_token_ids) == ((1,), (0,))


def test_what_a_tokenizer_puts_behind_a_text_does_not_begin_documents(tok: Path, corpus: Path) -> None:
    rust = tokenizers.Tokenizer.from_file(str(tok / "tokenizer.json"))
    special = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    rust.post_processor = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=special)
    shutil.copytree(tok, "around")
    rust.save("around/tokenizer.json")
    shards = Shards.open(prepare(Path("around"), paths=("corpus/00.txt",)))
    assert (shards.start_token_ids, shards.end_token_ids) == ((1,), (0,))


def test_large_vocabularies_are_stored_in_four_bytes(tok: Path, corpus: Path) -> None:
    shutil.copytree(tok, "large")
    tokenizer = json.loads(Path("large/tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{i}": i for i in range(len(vocabulary), 66_000)}
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 66_000, "content": "last", "special": False})
    Path("large/tokenizer.json").write_text(json.dumps(tokenizer))
    Path("a.txt").write_text("The last one.")
    shards = Shards.open(prepare(Path("large"), paths=("a.txt",)))
    assert shards.document(0).max() == shards.vocab_size - 1 > 1 << 16
    assert Path("shards/train-00000.bin").stat().st_size == 4 * shards.num_tokens
    sizes = (1 << 16, (1 << 16) + 1)
    types = [DocumentTokens(start=(0,), end=(), vocab_size=size, tokenizer_hash="").dtype for size in sizes]
    assert types == ["<u2", "<u4"]


# --- interruptions


PREPARE = """
import sys, time
from pathlib import Path
from edgelm_training.texts import piece
from edgelm_training.texts import process_pool
from edgelm_training.texts import shard_writer
from edgelm_training.texts.documents import DocumentConfig
write_piece = piece.write_piece
def held(next_piece):  # in the midst of its work, where there are pieces enough
    while len(list(Path(".shards.partial").glob("[0-9a-f]*.json"))) >= int(sys.argv[2]):
        process_pool.check_stop()
        time.sleep(0.01)
    return write_piece(next_piece)
if __name__ == "__main__":
    shard_writer._SMALLEST_PIECE = 1500
    shard_writer.write_piece = held
    config = shard_writer.PrepareConfig(
        documents=DocumentConfig(split_on="<|endoftext|>"), validation_fraction=0.1, workers=2
    )
    shard_writer.prepare_shards(["corpus"], "shards", sys.argv[1], config)
"""


def start_prepare(tok: Path, most: int) -> subprocess.Popen[str]:
    """Prepare in another process with two workers, in many small pieces; they stay at work once there are `most`."""
    Path("program.py").write_text(PREPARE)
    # A group of its own, so that a signal can reach all of its processes, as Ctrl-C does.
    command = [sys.executable, "program.py", str(tok), str(most)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, process_group=0)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_leaves_no_workers_and_the_next_one_goes_on_to_the_same_bytes(
    tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 1500)
    expected = contents(prepare(tok, "expected"))
    kept: dict[str, int] = {}
    for wanted in (1, 8):
        process = start_prepare(tok, len(kept) + wanted)
        while len(pieces()) < len(kept) + wanted:
            assert process.poll() is None
            time.sleep(0.001)
        children = workers_of(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not Path("shards").exists()
        assert len(children) == 3  # two workers, and the process in which Python tracks semaphores
        while any(Path(f"/proc/{child}/exe").exists() for child in children):
            time.sleep(0.01)
        assert kept.items() <= pieces().items()
        kept = pieces()
    prepare(tok)
    assert contents(Path("shards")) == expected
    assert not Path(".shards.partial").exists()


def test_a_kill_while_the_shards_get_their_names_loses_nothing(
    tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 3000)
    expected = contents(prepare(tok, "expected"))
    child = os.fork()
    if not child:
        # The tokenizer's files are copied when all shards are in their place.
        monkeypatch.setattr(shard_writer.shutil, "copyfile", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        prepare(tok)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not Path("shards").exists()
    before = pieces()
    assert len(before) > 5
    tokenized: list[str] = []
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_: tokenized.append("again"))
    prepare(tok)
    assert contents(Path("shards")) == expected
    assert tokenized == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validation_fraction": 0.3},
        {"end_token": "<|im_end|>"},
        {"max_characters": 300},
        {"text": "Sentence 0 sp-"},
    ],
    ids=str,
)
def test_of_what_was_tokenized_before_only_what_is_still_right_is_taken(
    tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    settings = {"skip_broken": True, "validation_fraction": 0.0001}
    with (corpus / "rows.jsonl").open("a") as file:
        file.write('{"text": \n')
    with monkeypatch.context() as patch:
        patch.setattr(shard_writer.shutil, "copyfile", lambda *_: os.close(-1))  # a disk that refuses, at the very end
        with pytest.raises(DataError, match="the same command goes on where it stopped"):
            prepare(tok, **settings)
    assert pieces()
    if text := changes.get("text"):  # of the same length
        (corpus / "00.txt").write_text(text + (corpus / "00.txt").read_text()[len(text) :])
    settings |= {name: value for name, value in changes.items() if name != "text"}
    expected = contents(prepare(tok, "fresh", **settings))

    assert contents(prepare(tok, **settings)) == expected
    assert Shards.open("shards").index["broken"] == 1


def test_a_piece_is_on_the_disk_before_it_is_said_to_be_done(
    tok: Path, corpus: Path, on_disk: list[tuple[str, Path, int]]
) -> None:
    prepare(tok)
    done = [
        (place, path) for place, (kind, path, _) in enumerate(on_disk) if kind == "rename" and path.suffix == ".json"
    ]
    assert done
    for place, path in done:
        synced = {file.name for kind, file, size in on_disk[:place] if kind == "fsync" and size}
        wanted = {f"{path.stem}.{split}{suffix}" for split in SPLITS for suffix in (".bin", ".idx.npy")}
        assert wanted <= synced


def test_where_there_are_no_links_shards_are_copied(tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contents(prepare(tok, "expected"))
    monkeypatch.setattr(os, "link", lambda *_: os.close(-1))
    assert contents(prepare(tok)) == expected


def test_ctrl_c_stops_all_workers_at_once_and_the_same_command_goes_on(
    tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 1500)
    expected = contents(prepare(tok, "expected"))
    begins, works = lambda _: len(workers_of(process)) == 3, lambda _: pieces()
    for reached in (begins, works):
        process = start_prepare(tok, 1)
        while not reached(process):
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
        assert process.returncode == -signal.SIGINT
        assert stderr.count("Traceback") == 1  # the interrupted program's own: none of a worker's
        assert "KeyboardInterrupt" in stderr
    assert contents(prepare(tok)) == expected


def test_a_worker_that_is_told_to_stop_does_not_read_a_large_file_to_its_end(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = find_files([corpus / "00.txt"])
    stop = threading.Event()
    monkeypatch.setattr(process_pool, "_stop", stop)
    assert scan_file(file, span_bytes=1 << 20).size
    stop.set()
    with pytest.raises(process_pool._StoppedError):
        scan_file(file, span_bytes=1 << 20)


def test_a_full_disk_leaves_the_old_shards_and_the_next_call_goes_on(tok: Path, corpus: Path) -> None:
    before = contents(prepare(tok))
    (corpus / "more.txt").write_text("".join(SENTENCES) * 30)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"Cannot write shards: .*too large.* the same command goes on where"):
            prepare(tok)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(Path("shards")) == before
    assert contents(prepare(tok)) != before


def test_pieces_that_another_version_has_left_are_made_again(
    tok: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_SMALLEST_PIECE", 3000)
    expected = contents(prepare(tok, "expected"))
    with monkeypatch.context() as patch:
        patch.setattr(piece, "_FORMAT", 1, raising=False)
        patch.setattr(shard_writer, "_balance", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(tok)
    left = list(Path(".shards.partial").glob("[0-9a-f]*.json"))
    for path in left:
        path.write_text('{"parts": {}}')
    assert left
    assert contents(prepare(tok)) == expected


def test_two_processes_with_one_output_take_turns(tok: Path, corpus: Path) -> None:
    waited: list[str] = []
    with file_lock(Path(".shards.partial/lock")):
        thread = threading.Thread(
            target=lambda: prepare_shards(
                ["corpus/00.txt"], "shards", tok, PrepareConfig(workers=1), waiting=waited.append
            )
        )
        thread.start()
        while not waited:
            time.sleep(0.01)
        assert not Path("shards").exists()
        shutil.rmtree(".shards.partial")  # as who is done does
    thread.join()
    assert Shards.open("shards").num_documents == 1
    assert waited == [str(os.getpid())]


@pytest.mark.usefixtures("open_files_stay", "corpus")
def test_nothing_is_left_beside_shards_on_windows_too(tok: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    prepare_shards(["corpus/00.txt"], "shards", tok, PrepareConfig(workers=1))
    assert Shards.open("shards").num_documents == 1
    assert not Path(".shards.partial").exists()


def test_a_worker_that_is_killed_is_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="A worker process was killed, maybe because memory ran out"):
        list(run_tasks(signal.raise_signal, [signal.SIGKILL, signal.SIGKILL], workers=2))

"""The command `edgelm data`: shards from a corpus, and a look at what is in them."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgelm.errors import DataError
from edgelm_training.cli.data import data
from edgelm_training.cli.tokenizer import train

TEXTS = [f"Text {i} of the sea.\n" for i in range(20)]
PREPARE = ["prepare", "corpus.txt", "--tokenizer", "tok", "-o", "shards"]
CHAT = {"messages": [{"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Hello!"}]}


@pytest.fixture(autouse=True)
def _corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tok: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tok, "tok")
    Path("corpus.txt").write_text("\n".join(TEXTS))
    Path("rows.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in TEXTS[:3]))
    Path("chats.jsonl").write_text(json.dumps(CHAT) + "\n" + json.dumps({"prompt": "1", "completion": "2"}) + "\n")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(data, arguments, catch_exceptions=False)


def prepare(*arguments: str) -> Result:
    return run("prepare", *arguments, "--tokenizer", "tok", "-o", "shards", "--workers", "1")


def test_prepare_says_what_it_made_and_again_that_nothing_changed() -> None:
    result = prepare("corpus.txt", "--split-on", "", "--validation-fraction", "0.2")
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [label for label, _ in lines] == ["shards", "train", "validation", "vocabulary", "made"]
    assert lines[0][1].startswith("shards (")
    documents = [int(lines[i][1].split()[2]) for i in (1, 2)]
    assert sum(documents) == 20
    assert documents[1] > 0
    assert lines[4][1] == f"of  1 file ({Path('corpus.txt').stat().st_size / 1e3:.1f} kB)"
    assert result.stderr == ""
    again = prepare("corpus.txt", "--split-on", "", "--validation-fraction", "0.2")
    assert again.stdout == result.stdout
    assert again.stderr == "They were up to date; nothing was written.\n"


def test_a_line_between_texts_that_there_is_none_of_is_said() -> None:
    Path("inline.txt").write_text("One.<|endoftext|>Two.\nThree.<|endoftext|>\n")
    told = "No line of the texts is '<|endoftext|>', so each text file is one document."
    for _ in range(2):  # shards that are up to date say it too
        assert prepare("inline.txt", "corpus.txt", "--split-on", "<|endoftext|>").stderr.startswith(told)
    assert told not in prepare("corpus.txt", "--split-on", "").stderr


def test_prepare_of_one_document_says_that_none_is_left_to_validate_on() -> None:
    for again in ("", "They were up to date; nothing was written.\n"):
        told = prepare("corpus.txt").stderr
        assert told.startswith("There is one document, or one several times, so none is left to validate on: a run on ")
        assert told.endswith("name the line between them: --split-on LINE.\n" + again)
    assert prepare("corpus.txt", "--validation-fraction", "0").stderr == ""  # as it was asked for


def test_files_of_a_folder_that_are_not_read_are_counted() -> None:
    Path("c").mkdir()
    Path("c/1.txt").write_text("The sea.")
    Path("c/2.csv").write_text("text\nThe sea.")
    told = "Passed over: 1 .csv. Of a folder, .txt, "
    assert prepare("c").stderr.startswith(told)
    assert prepare("c", "c/2.csv").stderr == ""
    tokenizer = CliRunner().invoke(train, ["c", "-o", "new", "--vocab-size", "260"], catch_exceptions=False)
    assert tokenizer.stderr.startswith(told)
    shutil.copy("chats.jsonl", "c")
    assert run("show", "c", "--tokenizer", "tok").stderr.startswith("Passed over: 1 .txt, 1 .csv. Of a folder, .jsonl,")


def test_a_setting_that_no_file_has_a_use_for_is_wrong_usage() -> None:
    for arguments in (("corpus.txt", "--field", "content"), ("rows.jsonl", "--split-on", "")):
        refused = prepare(*arguments)
        assert (refused.exit_code, Path("shards").exists()) == (2, False)
    learned = CliRunner().invoke(train, ["corpus.txt", "-o", "new", "--field", "content"], catch_exceptions=False)
    assert (learned.exit_code, Path("new").exists()) == (2, False)


def test_prepare_takes_every_setting_and_prints_json() -> None:
    Path("rows.jsonl").write_text(
        Path("rows.jsonl").read_text() + "{\n" + json.dumps({"content": "long " * 200}) + "\n"
    )
    arguments = (
        "--field",
        "content",
        "--skip-broken",
        "--max-characters",
        "500",
        "--end-token",
        "<|im_end|>",
        "--json",
    )
    figures = json.loads(prepare("rows.jsonl", *arguments, "--validation-fraction", "0").stdout)
    assert figures["splits"]["train"]["documents"] == 5
    assert figures["splits"]["validation"] == {"documents": 0, "tokens": 0, "shards": 0}
    assert (figures["broken"], figures["source_files"], figures["unchanged"]) == (1, 1, False)
    assert figures["bytes"] == sum(path.stat().st_size for path in Path("shards").iterdir())
    assert "1 broken line or document" in run("show", "shards").stdout
    assert run("show", "shards", "-n", "9").stdout.count("<|im_end|>long") == 2


def test_show_prints_documents_and_where_they_come_from() -> None:
    prepare("corpus.txt", "--split-on", "", "--validation-fraction", "0")
    result = run("show", "shards", "--start", "18", "-n", "5")
    assert "train 18 · corpus.txt:37 · " in result.stdout
    assert result.stdout.endswith("<|endoftext|>Text 19 of the sea.\n\n")
    shown = json.loads(run("show", "shards", "--json", "-n", "1").stdout)["shown"]
    assert [(item["number"], item["place"], item["text"]) for item in shown] == [
        (0, "corpus.txt:1", "<|endoftext|>Text 0 of the sea.\n")
    ]
    assert json.loads(run("show", "shards", "--split", "validation", "--json").stdout)["shown"] == []
    assert run("show", "shards", "--start", "99").exit_code == 0


def test_show_cuts_long_documents_and_what_a_terminal_would_obey() -> None:
    name = "corpus.txt" if sys.platform == "win32" else "corpus\x1b]0;.txt"  # Windows has no such names
    Path(name).write_text("\x1b]0;title\x07" + "long " * 1000)  # click would take out a code of colour itself
    prepare(name)
    text = run("show", "shards").stdout
    assert "… (5,0" in text
    assert "\x1b" not in text
    assert len(text) < 1600


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file's name is Unicode")
def test_the_name_of_a_file_need_not_be_utf8() -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    Path("corpus.txt").rename(name)
    assert prepare(name).exit_code == 0
    assert json.loads(run("show", "shards", "--json").stdout)["shown"][0]["place"] == f"{name}:1"


def test_show_puts_what_is_learned_in_brackets() -> None:
    result = run("show", "chats.jsonl", "--tokenizer", "tok", "-n", "1")
    expected = "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n\n"
    assert result.stdout.endswith("0 · chats.jsonl:1\n" + expected)
    assert "2\n" in result.stdout.splitlines(keepends=True)[0]
    figures = json.loads(run("show", "chats.jsonl", "--tokenizer", "tok", "--json").stdout)
    assert figures["conversations"] == 2
    learned = [[part["text"] for part in chat["parts"] if part["learned"]] for chat in figures["shown"]]
    assert learned == [["Hello!<|im_end|>"], ["2<|im_end|>"]]
    assert figures["learned_tokens"] < figures["tokens"] > figures["longest"]


def test_show_of_conversations_has_nothing_that_a_terminal_would_obey() -> None:
    Path("chats.jsonl").write_text(json.dumps({"prompt": "\x1b]0;title\x07Hi", "completion": "Hello\x1b]0;!"}) + "\n")
    assert "\x1b" not in run("show", "chats.jsonl", "--tokenizer", "tok").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_show_is_green_on_a_terminal() -> None:
    main, worker = pty.openpty()
    program = "import sys; from edgelm_training.cli.data import data; data(sys.argv[1:])"
    arguments = ["show", "chats.jsonl", "--tokenizer", "tok", "-n", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=worker, stderr=subprocess.DEVNULL
    ) as process:
        os.close(worker)
        shown = b""
        while block := _read(main):
            shown += block
    os.close(main)
    assert process.returncode == 0
    assert b"\x1b[32mHello!<|im_end|>\x1b[0m" in shown
    assert "⟦".encode() not in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux says so when the other side has closed
        return b""


@pytest.mark.parametrize("paths", [["corpus.txt"], ["tok"], ["tok", "shards"]])
def test_show_of_something_else_says_what_it_takes(paths: list[str]) -> None:
    prepare("corpus.txt")
    with pytest.raises(DataError, match=rf"{paths[0]} is no folder of shards .* --tokenizer FOLDER"):
        run("show", *paths)
    with pytest.raises(DataError, match=r"Shards are shown one folder at a time; these are 2\. Name one of them\."):
        run("show", "shards", "shards")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "Missing argument"),
        (["prepare", "corpus.txt", "-o", "shards"], "Missing option '--tokenizer'"),
        (["show"], "Missing argument"),
        ([*PREPARE, "--workers", "0"], "workers is 0; it must be 1 or more."),
        ([*PREPARE, "--validation-fraction", "1"], "validation_fraction is 1.0; it must be from 0 to below 1."),
        ([*PREPARE, "--max-characters", "-1"], "max_characters is -1; it must be from 256 to 1073741824."),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(data, arguments)
    assert (result.exit_code, message in result.stderr) == (2, True)


def test_a_process_that_waits_for_another_says_so(tok: Path) -> None:
    from edgelm.files.file_lock import file_lock

    Path(".shards.partial").mkdir()
    program = "import sys; from edgelm_training.cli.data import data; data(sys.argv[1:])"
    arguments = ["prepare", "corpus.txt", "--tokenizer", "tok", "-o", "shards", "--workers", "1"]
    with file_lock(Path(".shards.partial/lock")):
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()
    assert line == f"Another process ({os.getpid()}) prepares the same shards; waiting …\n"
    process.communicate()
    assert process.returncode == 0
    assert Path("shards/index.json").exists()

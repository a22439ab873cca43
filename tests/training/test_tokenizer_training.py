"""Training a tokenizer: it loses no byte, gives the same bytes each time, and reads the same in transformers."""

from __future__ import annotations

import _thread
import contextlib
import json
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

from edgelm.errors import ConfigError, DataError
from edgelm.text.chat_encoding import encode_chat
from edgelm.text.chat_template import ChatTemplate
from edgelm.text.tokenizer import Tokenizer
from edgelm_training.cli.tokenizer import tokenizer as command
from edgelm_training.conversations.assistant_tokens import encode_conversation
from edgelm_training.conversations.conversations import Conversation
from edgelm_training.texts import tokenizer_training
from edgelm_training.texts.documents import DocumentConfig
from edgelm_training.texts.tokenizer_training import CONTROL_TOKENS, TokenizerConfig, train_tokenizer

TEXT = "The sea is blue, and the sea was grey in 1984.\n\n    It's wide: naïve 漢字 😀 waves, waves, waves.\r\n"
MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is the sea wide?"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "And blue?"},
    {"role": "assistant", "content": "  It was grey in 1984.\n"},
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("corpus")
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT * 20, newline="")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": f"Row {i}: {TEXT}"}) + "\n" for i in range(20)))
    return folder


@pytest.fixture
def tok(corpus: Path) -> Path:
    train_tokenizer([corpus], "tok", TokenizerConfig(vocab_size=300))
    return Path("tok")


@pytest.mark.parametrize("text", [TEXT, "", "unseen: Ω≈ç√ \x00\x7f\t\n\n  \u2028 \U0001f469\u200d\U0001f467", " a  b "])
def test_every_text_decodes_to_its_bytes_and_encodes_as_in_transformers(tok: Path, text: str) -> None:
    ours, theirs = Tokenizer.load(tok), AutoTokenizer.from_pretrained(tok)
    ids = ours.encode(text)
    assert b"".join(map(ours.token_bytes, ids)) == text.encode()
    assert ids == theirs(text)["input_ids"]
    assert theirs.decode(ids) == ours.decode(ids) == text


def test_the_control_tokens_come_first_and_have_their_roles(tok: Path) -> None:
    ours, theirs = Tokenizer.load(tok), AutoTokenizer.from_pretrained(tok)
    assert dict(ours.control_tokens) == {token: id_ for id_, token in enumerate(CONTROL_TOKENS)}
    assert (theirs.bos_token, theirs.eos_token, theirs.pad_token) == ("<|endoftext|>", "<|endoftext|>", "<|pad|>")
    assert sorted(theirs.all_special_ids) == [0, 3]
    assert theirs.convert_tokens_to_ids(list(CONTROL_TOKENS)) == [0, 1, 2, 3]


def test_frequent_words_become_tokens_and_digits_stay_single(tok: Path) -> None:
    ours = Tokenizer.load(tok)
    assert len(ours.encode(" waves")) == 1
    assert len(ours.encode("1984")) == 4


def test_where_no_spaces_are_a_token_is_no_sentence(corpus: Path) -> None:
    notice = "本网站所有内容未经许可不得转载违者必究欢迎关注我们的公众号获取更多信息"
    (corpus / "a.txt").write_text(f"{notice}\n" * 20)
    train_tokenizer([corpus / "a.txt"], "tok", TokenizerConfig(vocab_size=600))
    ours = Tokenizer.load("tok")
    assert len(ours.encode(notice)) > 3
    ids = set(range(ours.vocab_size)) - ours.control_token_ids
    assert max(len(ours.token_bytes(id_)) for id_ in ids) <= 32


@pytest.mark.parametrize(
    "word",
    ["ที่นี่", "हिन्दी", "e\u0301te\u0301", "\u2764\ufe0f", "\U0001f3f3\ufe0f\u200d\U0001f308"],
    ids=["Thai", "Hindi", "not composed", "emoji", "emoji of several"],
)
def test_marks_stay_with_their_letters_and_symbols(corpus: Path, word: str) -> None:
    (corpus / "a.txt").write_text(f"{word} {word} " * 20)
    train_tokenizer([corpus / "a.txt"], "tok", TokenizerConfig(vocab_size=300))
    assert len(Tokenizer.load("tok").encode(f" {word}")) == 1


def test_the_chat_template_renders_as_in_transformers_and_marks_what_the_assistant_says(tok: Path) -> None:
    ours, template = Tokenizer.load(tok), ChatTemplate.load(tok)
    assert template is not None
    theirs = AutoTokenizer.from_pretrained(tok)
    expected = theirs.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    conversation = Conversation(messages=tuple(MESSAGES), learned=frozenset({2, 4}), file="a", line=1)
    encoded = encode_conversation(template, ours, conversation)
    assert encoded.token_ids == expected["input_ids"]
    assert encoded.learned == [bool(mark) for mark in expected["assistant_masks"]]
    said = [id_ for id_, learned in zip(encoded.token_ids, encoded.learned, strict=True) if learned]
    assert ours.decode(said, skip_control_tokens=False) == "It is.<|im_end|>  It was grey in 1984.\n<|im_end|>"
    prompt = theirs.apply_chat_template(MESSAGES[:2], add_generation_prompt=True)["input_ids"]
    assert encode_chat(template, ours, MESSAGES[:2]) == prompt


def test_the_same_corpus_gives_the_same_bytes(corpus: Path, tok: Path) -> None:
    train_tokenizer([corpus], "again", TokenizerConfig(vocab_size=300))
    for path in tok.iterdir():
        assert (Path("again") / path.name).read_bytes() == path.read_bytes()


def test_files_folders_and_globs_are_read_once_each(corpus: Path) -> None:
    trained = train_tokenizer(["corpus", "corpus/*.txt"], "tok", TokenizerConfig(vocab_size=300))
    assert (trained.files, trained.documents) == (2, 21)
    assert trained.vocab_size == Tokenizer.load("tok").vocab_size == 300


def test_more_control_tokens_can_be_had(corpus: Path) -> None:
    train_tokenizer(["corpus"], "tok", TokenizerConfig(vocab_size=300, control_tokens=("<|fim|>",)))
    assert Tokenizer.load("tok").control_tokens["<|fim|>"] == 4


def test_progress_goes_through_the_bytes_and_tells_when_all_is_read(corpus: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    config = TokenizerConfig(vocab_size=300)
    train_tokenizer(
        ["corpus"], "tok", config, progress=lambda *call: calls.append(call), merging=lambda: calls.append(("m", 0, 0))
    )
    *reading, last = calls
    assert last[0] == "m"
    done = [call[1] for call in reading]
    total = sum(path.stat().st_size for path in corpus.iterdir())
    assert done == sorted(done)
    assert {call[2] for call in reading} == {total} == {done[-1]}


def test_no_tokenizer_is_written_into_a_model_package(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "edgelm.json").touch()
    with pytest.raises(DataError, match=f"tok is not written: {tmp_path} is a model package"):
        train_tokenizer([corpus], tmp_path / "tok")


def test_an_older_tokenizer_is_replaced_and_nothing_else_is(corpus: Path, tok: Path) -> None:
    before = (tok / "tokenizer.json").read_bytes()
    train_tokenizer([corpus], tok, TokenizerConfig(vocab_size=280))
    assert (tok / "tokenizer.json").read_bytes() != before
    (tok / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"tok is not replaced: it holds model\.safetensors, which is no part of a"):
        train_tokenizer([corpus], tok)
    assert (tok / "model.safetensors").read_bytes() == b"precious"


def test_a_full_disk_leaves_the_old_tokenizer(corpus: Path, tok: Path) -> None:
    before = (tok / "tokenizer.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"Cannot write tok: .* What stood there is as it was\."):
            train_tokenizer([corpus], tok, TokenizerConfig(vocab_size=300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tok / "tokenizer.json").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["corpus", "tok"]


def test_what_cannot_be_written_shows_before_the_work(corpus: Path) -> None:
    Path("file").write_text("mine")
    read: list[object] = []
    for output in ("file", "file/tok"):
        with pytest.raises(DataError, match=rf"Cannot write {output}: "):
            train_tokenizer([corpus], output, TokenizerConfig(vocab_size=300), progress=lambda *_: read.append(1))
    assert (read, Path("file").read_text()) == ([], "mine")


def test_a_broken_line_is_named_and_can_be_left_out(corpus: Path) -> None:
    with (corpus / "b.jsonl").open("a") as file:
        file.write('{"text": "no end\n')
    with pytest.raises(DataError, match=r"^corpus/b\.jsonl:21: broken JSON"):
        train_tokenizer([corpus], "tok")
    assert not Path("tok").exists()
    config = TokenizerConfig(vocab_size=300, documents=DocumentConfig(skip_broken=True))
    assert train_tokenizer([corpus], "tok", config).broken == 1


def test_a_text_that_vanishes_meanwhile_is_named(corpus: Path) -> None:
    def vanish(_label: str, done: int, _total: int | None) -> None:
        (corpus / "b.jsonl").unlink(missing_ok=True)

    with pytest.raises(DataError, match=r"^Cannot read corpus/b\.jsonl: .*No such file"):
        train_tokenizer([corpus], "tok", progress=vanish)
    assert not Path("tok").exists()


def test_an_empty_corpus_is_refused(corpus: Path) -> None:
    Path("empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"The corpus is empty: there is no document in empty\.txt\."):
        train_tokenizer(["empty.txt"], "tok")
    Path("broken.jsonl").write_text("{\n{\n")
    broken = TokenizerConfig(documents=DocumentConfig(skip_broken=True))
    with pytest.raises(DataError, match=r"; 2 broken lines or documents left out\.$"):
        train_tokenizer(["broken.jsonl"], "tok", broken)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vocab_size": 259}, r"vocab_size is 259; it must be from 260, for 4 control tokens and the 256 bytes, to"),
        ({"vocab_size": 10**10}, r"vocab_size is 10000000000; it must be from 260, .* to 1048576\."),
        ({"control_tokens": ("<|a|>", "<|a|>")}, r"each must be new, and two or more printable characters\."),
        ({"control_tokens": ("<|im_end|>",)}, r"each must be new, and"),
        ({"control_tokens": ("",)}, r"each must be new, and two or more"),
        ({"control_tokens": ("e",)}, r"control_tokens are \('e',\); each must be new, and two or more"),
        ({"control_tokens": ("<|\udcff|>",)}, r"two or more printable"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenizerConfig(**settings)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, ["train", *arguments], catch_exceptions=False)


def test_the_command_says_what_it_made(corpus: Path) -> None:
    result = run("corpus", "--vocab-size", "300", "-o", "tok")
    assert result.stdout.split()[:2] == ["tokenizer", "tok"]
    assert "300 tokens\n" in result.stdout
    assert "21 documents, 2 files" in result.stdout
    assert result.stderr == ""  # no progress bar where standard error is no terminal


def test_the_command_takes_the_name_of_the_field(corpus: Path) -> None:
    Path("rows.jsonl").write_text(json.dumps({"content": TEXT}) + "\n")
    assert "1 document, 1 file\n" in run("rows.jsonl", "--field", "content", "-o", "tok").stdout


def test_a_setting_out_of_range_is_wrong_usage(corpus: Path) -> None:
    result = run("corpus", "--vocab-size", "3", "-o", "tok")
    assert (result.exit_code, "vocab_size is 3; it must be from 260" in result.stderr) == (2, True)


def test_the_command_says_if_the_text_has_fewer_tokens_than_asked_for(corpus: Path) -> None:
    result = run("corpus", "-o", "tok")
    size = Tokenizer.load("tok").vocab_size
    assert f"{size} tokens (of 8192: the text has no more pairs)" in result.stdout


def test_the_command_prints_json_and_counts_what_it_left_out(corpus: Path) -> None:
    (corpus / "c.jsonl").write_text("{\n")
    result = run("corpus", "--vocab-size", "300", "-o", "tok", "--skip-broken", "--json", "--control-token", "<|x|>")
    characters = 40 * len(TEXT) - 20 + sum(len(f"Row {i}: ") for i in range(20))  # \r\n of the text file is \n
    assert json.loads(result.stdout) == {
        "folder": "tok",
        "vocab_size": 300,
        "files": 3,
        "documents": 21,
        "characters": characters,
        "broken": 1,
    }
    assert "1 broken line or document" in run("corpus", "-o", "tok", "--skip-broken").stdout


def test_an_interrupt_ends_a_training_that_the_library_would_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = threading.Event()

    class Slow:
        def __init__(self, _model: object) -> None: ...

        def train_from_iterator(self, texts: Iterator[str], _trainer: object) -> None:
            list(texts)
            with contextlib.suppress(KeyboardInterrupt):  # of which the library hears when all is done
                _thread.interrupt_main()
                finished.wait()

    monkeypatch.setattr(tokenizer_training, "Tokenizer", Slow)
    (tmp_path / "a.txt").write_text("The sea is blue.")
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer([tmp_path / "a.txt"], tmp_path / "tokenizer")
    assert not finished.is_set()
    finished.set()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]

"""What a calibration reads: the bundled text, or a user's own texts and chats, as much as is taken."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edgelm.errors import ConfigError, ExportError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.quantize.calibration_text import CalibrationOptions, bundled_text, calibration_sequences
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint
from edgelm_export.sources.text_tools import text_tools
from edgelm_export.verification.verification_text import verification_text


def test_the_bundled_text_has_nothing_of_the_text_that_packages_are_checked_on() -> None:
    checked = {line.strip() for line in verification_text().splitlines() if len(line.strip()) > 30}
    assert not [line for line in bundled_text().splitlines() if line.strip() in checked]
    assert len(bundled_text()) > 40_000


@pytest.mark.parametrize("tokens", [1, 512, 8192])
def test_as_much_of_the_bundled_text_is_encoded_as_is_taken(checkpoint: HuggingFaceCheckpoint, tokens: int) -> None:
    tokenizer, template = text_tools(checkpoint)
    options = CalibrationOptions(max_tokens=tokens)
    taken = [id_ for ids in calibration_sequences(options, tokenizer, template, checkpoint.config) for id_ in ids]
    assert taken == tokenizer.encode(bundled_text())[:tokens]


def test_users_texts_and_chats_are_read(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    tokenizer, template = text_tools(checkpoint)
    (tmp_path / "mine.txt").write_text("The sea. " * 50)
    chat = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]}
    separated = json.dumps({"text": "The\u2028sea\x85."}, ensure_ascii=False)  # line separators, but not of JSON lines
    (tmp_path / "mine.jsonl").write_text(separated + "\n\n" + json.dumps(chat) + "\n", encoding="utf-8")

    def read(name: str, tokens: int = 100) -> list[list[int]]:
        options = CalibrationOptions(text=tmp_path / name, max_tokens=tokens)
        return calibration_sequences(options, tokenizer, template, checkpoint.config)

    assert read("mine.txt") == [tokenizer.encode("The sea. " * 50)[:100]]
    assert read("mine.txt", 10**11) == read("mine.txt", 10**30) == [tokenizer.encode("The sea. " * 50)]
    for name in ("mine.txt", "mine.jsonl"):  # as some editors begin a file
        (tmp_path / f"marked-{name}").write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
        assert read(f"marked-{name}") == read(name)
    text, conversation = read("mine.jsonl")
    assert text == tokenizer.encode("The\u2028sea\x85.")
    assert conversation[0] == 1  # the template's own control token
    assert "user\nHello" in tokenizer.decode(conversation)
    assert tokenizer.decode(conversation, skip_control_tokens=False).endswith("Hi.<|im_end|>\n")
    options = CalibrationOptions(text=tmp_path / "mine.txt", max_tokens=9)
    assert options.describe(read("mine.txt", 9)) == "9 tokens of mine.txt"
    (tmp_path / "short.txt").write_text("The sea.")
    count = len(tokenizer.encode("The sea."))
    assert CalibrationOptions(text=tmp_path / "short.txt").describe(read("short.txt")) == f"{count} tokens of short.txt"


@pytest.mark.parametrize("word", ["The sea. ", "=" * 64 + "\n", "\u00e4\u4f60 "])
def test_no_more_of_a_users_text_is_encoded_than_is_taken(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    tokenizer, template = text_tools(checkpoint)
    text, encoded = word * (1 << 18 if word.isascii() else 20), [0]
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    (tmp_path / "mine.jsonl").write_text(f"{json.dumps({'text': word * 20})}\n" * 100 + "no JSON")
    expected = tokenizer.encode(text[: 1 << 14])[:64]
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str) -> list[int]:
        encoded[0] += len(text)
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    for name in ("mine.txt", "mine.jsonl"):
        options = CalibrationOptions(text=tmp_path / name, max_tokens=64)
        sequences = calibration_sequences(options, tokenizer, template, checkpoint.config)
        assert [id_ for ids in sequences for id_ in ids][: len(expected)] == expected[:64]
    assert encoded[0] < 1 << 15


def test_documents_are_cut_into_sequences_that_fit_and_begin_as_texts_do(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "leading_ids", (1, 2))
    tokenizer, template = text_tools(checkpoint)
    texts = bundled_text()[:1200], bundled_text()[1200:3000]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = CalibrationOptions(text=tmp_path / "mine.jsonl", max_tokens=1100)
    first, second = map(tokenizer.encode, texts)
    taken = second[: 1100 - len(first)]

    sequences = calibration_sequences(options, tokenizer, template, checkpoint.config)

    assert sequences == [[1, 2, *ids] for ids in (first[:510], first[510:], taken)]
    assert options.describe(sequences) == "1100 tokens of mine.jsonl"
    smaller = dataclasses.replace(checkpoint.config, max_position_embeddings=16, vocab_size=300)
    sequences = calibration_sequences(options, tokenizer, template, smaller)
    assert max(map(len, sequences)) == 16
    assert [id_ for ids in sequences for id_ in ids[2:]] == [id_ for id_ in first + second if id_ < 300][:1100]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"a\.txt holds no text to calibrate on\."),
        ("a.jsonl", '{"text": "x"}\r\n{\r\n', r"a\.jsonl, line 2: no JSON \(.* at character 2\); each line is"),
        pytest.param("a.jsonl", '{"text": "x"}\n' + "[" * 100_000, r"l, line 2: maximum recursion depth", id="deep"),
        ("A.JSON", '[\n{"text": "x"}\n]', r"A\.JSON, line 1: no JSON"),
        ("a.jsonl", '{"x": 1}', r"line 1: a line is an object with a `text`, or with `messages`\."),
        ("a.jsonl", '{"messages": []}', r"line 1: The conversation is empty"),
        ("missing/a.txt", None, r"a\.txt cannot be read as a text to calibrate on"),
    ],
)
def test_a_calibration_text_that_is_none_is_refused(
    checkpoint: HuggingFaceCheckpoint, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    tokenizer, template = text_tools(checkpoint)
    with pytest.raises(ExportError, match=message):
        calibration_sequences(CalibrationOptions(text=tmp_path / name), tokenizer, template, checkpoint.config)


def test_statistics_of_llama_cpp_are_no_text_to_calibrate_on(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "imatrix.gguf").write_bytes(b"GGUF\3\0\0\0\x80")
    tokenizer, template = text_tools(checkpoint)
    with pytest.raises(ExportError, match=r"imatrix.gguf cannot be read as a text .* Give a text in UTF-8, or texts"):
        calibration_sequences(
            CalibrationOptions(text=tmp_path / "imatrix.gguf"), tokenizer, template, checkpoint.config
        )


def test_a_chat_needs_a_template(checkpoint: HuggingFaceCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    tokenizer, _ = text_tools(checkpoint)
    with pytest.raises(ExportError, match=r"line 1: it holds a chat, and the model has no chat template\."):
        calibration_sequences(CalibrationOptions(text=tmp_path / "a.jsonl"), tokenizer, None, checkpoint.config)


def test_a_calibration_of_no_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0; it must be a whole number of 1 or more"):
        CalibrationOptions(max_tokens=0)

"""Folders whose tokenizer is a vocabulary for tiktoken, against what tiktoken does, written out here."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import regex
from ranked_vocabulary import TEXTS, joined, trained_ranks
from tokenizers import Tokenizer

from edgelm.errors import CheckpointError
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.tokenizers import tiktoken_folder
from edgelm_export.tokenizers.tiktoken_folder import TIKTOKEN_CLASSES

# As the authors' code has them (tokenization_moonshot.py, _hy.py, _chatglm.py, _qwen.py).
KIMI = "|".join(
    [
        r"""[\p{Han}]+""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}""",
        r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
        r"""\s*[\r\n]+""",
        r"""\s+(?!\S)""",
        r"""\s+""",
    ]
)
QWEN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
    r"""|\s+(?!\S)|\s+"""
)
GLM = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PATTERNS = {"TikTokenTokenizer": KIMI, "HYTokenizer": QWEN, "ChatGLM4Tokenizer": GLM, "QWenTokenizer": QWEN}
NORMALIZED = ("HYTokenizer", "QWenTokenizer")
CHAT = {
    "added_tokens_decoder": {
        "500": {"content": "[BOS]", "special": True},
        "501": {"content": "[EOS]", "special": True},
        "503": {"content": "<|im_end|>", "special": True},
    },
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
    "additional_special_tokens": ["<|im_end|>"],
    "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
    "chat_template": "{{ messages[0].content }}<|im_end|>",
}


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return trained_ranks()


def write(folder: Path, class_: str | None, ranks: Mapping[bytes, int], settings: Mapping[str, Any] = {}) -> Path:
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    name = {"TikTokenTokenizer": "tiktoken.model", "ChatGLM4Tokenizer": "tokenizer.model"}.get(
        str(class_), "hy.tiktoken"
    )
    path = folder / name
    path.write_text("".join(lines))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_, **settings}))
    (folder / "tokenization.py").write_text("raise SystemExit('this must not run')")
    return path


@pytest.mark.parametrize("class_", TIKTOKEN_CLASSES)
def test_a_text_has_the_ids_that_tiktoken_gives_it(tmp_path: Path, ranks: dict[bytes, int], class_: str) -> None:
    write(tmp_path, class_, ranks, CHAT if class_ == "TikTokenTokenizer" else {})
    tokenizer = Tokenizer.from_str(read_text_files(tmp_path)["tokenizer.json"])
    more = [
        "中文getUserName中文ABC",
        "ABCdef汉字Ghi",
        "日本語ひらがなカタカナ",
        "  \n  \n x",
        "I'VE we'll",
        "12345",
        "e\u0301",
    ]
    pieces = regex.compile(PATTERNS[class_], regex.V1)
    for text in [*TEXTS, *more]:
        read = unicodedata.normalize("NFC", text) if class_ in NORMALIZED else text
        wanted = [id_ for piece in pieces.findall(read) for id_ in joined(piece.encode(), ranks)]
        assert tokenizer.encode(text, add_special_tokens=False).ids == wanted, text
        assert tokenizer.decode(wanted) == read


def test_control_tokens_are_those_of_the_settings_and_of_the_class(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    write(tmp_path, "TikTokenTokenizer", ranks, CHAT)
    files = read_text_files(tmp_path)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    assert tokenizer.encode("[BOS]<|im_end|><|reserved_token_502|>[EOS]<|reserved_token_755|>").ids == [
        500, 503, 502, 501, 755,
    ]  # fmt: skip
    assert tokenizer.get_vocab_size() == 756
    assert files["chat_template.jinja"] == CHAT["chat_template"]
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"]) == ("[BOS]", "[EOS]")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in settings
    (tmp_path / "tiktoken.model").unlink()
    write(tmp_path, "HYTokenizer", ranks, {"eos_token": "<|eos|>", "pad_token": "<|pad|>"})
    tokenizer = Tokenizer.from_str(read_text_files(tmp_path)["tokenizer.json"])
    assert tokenizer.encode("<|startoftext|><|extra_0|><|eos|>").ids == [501, 505, 503]
    own = {"700": {"content": "<|eos|>", "special": True}}  # a token of the class, by another id
    write(tmp_path, "HYTokenizer", ranks, {"added_tokens_decoder": own})
    tokenizer = Tokenizer.from_str(read_text_files(tmp_path)["tokenizer.json"])
    assert tokenizer.encode("<|startoftext|><|eos|>").ids == [501, 700]


def test_two_tokens_of_glm_stand_before_each_text(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    path = write(tmp_path, "ChatGLM4Tokenizer", ranks, {"eos_token": "<|endoftext|>"})
    tokenizer = Tokenizer.from_str(read_text_files(tmp_path)["tokenizer.json"])
    assert tokenizer.encode("<|user|>").ids == [502, 504, 507]
    assert tokenizer.token_to_id("<|endoftext|>") == 500
    path.unlink()
    write(tmp_path, "ChatGLM4Tokenizer", ranks, {"added_tokens_decoder": {"504": {"content": "<s>", "special": True}}})
    with pytest.raises(CheckpointError, match=r"'<sop>', which stands before each text, is no token of"):
        read_text_files(tmp_path)


LETTERS = {bytes([byte]): byte for byte in range(256)}
BROKEN: dict[str, tuple[str | None, dict[bytes, int], str, str]] = {
    "another class": (
        "MyTokenizer", LETTERS, "",
        r"has no tokenizer\.json, and the tokenizer_class in tokenizer_config\.json is 'MyTokenizer'\. Of hy\.tiktoken "
        r"it can be built for TikTokenTokenizer, HYTokenizer, ChatGLM4Tokenizer, QWenTokenizer\. Take a GGUF file",
    ),
    "no class": (None, LETTERS, "", "is None"),
    "a byte without a token": (
        "HYTokenizer", {token: rank for token, rank in LETTERS.items() if rank != 7}, "",
        r"has no token for the byte 7\.",
    ),
    "an empty file": ("HYTokenizer", {}, "", r"has no token for the byte 0\."),
    "two tokens of one rank": ("HYTokenizer", {**LETTERS, b"ab": 5}, "", "gives two tokens one rank"),
    "two ranks of one token": ("HYTokenizer", LETTERS, "AA== 256", r"line 257 gives b'\\x00' a second rank, 256\."),
    "no base64": ("HYTokenizer", LETTERS, "A*== 256", r"line 257, 'A\*== 256', is not a token of up to 512 bytes"),
    "no rank": ("HYTokenizer", LETTERS, "YWI= x", "line 257, 'YWI= x', is not a token"),
    "a rank below none": ("HYTokenizer", LETTERS, "YWI= -1", "is not a token"),
    "a token without end": ("HYTokenizer", {**LETTERS, b"a" * 513: 256}, "", "line 257, .* of up to 512"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path, case: str) -> None:
    class_, ranks, more, told = BROKEN[case]
    path = write(tmp_path, class_, ranks)
    path.write_text(path.read_text() + more)
    with pytest.raises(CheckpointError, match=told):
        read_text_files(tmp_path)


def test_what_would_take_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "HYTokenizer", {**LETTERS, **{b"ab" * size: 255 + size for size in range(1, 9)}})
    monkeypatch.setattr(tiktoken_folder, "_MAX_MERGES", 20)
    with pytest.raises(CheckpointError, match=r"hy\.tiktoken: more than 20 pairs of its tokens make a token"):
        read_text_files(tmp_path)
    monkeypatch.setattr(tiktoken_folder, "_MAX_BYTES", 300)
    with pytest.raises(CheckpointError, match=r"hy\.tiktoken: its tokens have more than 300 bytes"):
        read_text_files(tmp_path)
    monkeypatch.setattr(tiktoken_folder, "MAX_TOKENS", 200)
    with pytest.raises(CheckpointError, match=r"hy\.tiktoken has 265 lines; at most 200 are read"):
        read_text_files(tmp_path)
    monkeypatch.setattr(tiktoken_folder, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"cannot be read: it has \d+ bytes, and at most 1000 are read"):
        read_text_files(tmp_path)

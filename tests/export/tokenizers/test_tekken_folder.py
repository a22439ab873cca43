"""Folders of Mistral's whose tokenizer is tekken.json alone, against what mistral-common does, written out here."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import regex
from ranked_vocabulary import TEXTS, joined, trained_ranks
from tokenizers import Tokenizer

from edgelm.errors import CheckpointError
from edgelm_export.sources import checkpoint_folder
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.sources.huggingface import HuggingFaceCheckpoint

# As Mistral's files have it.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MORE = [
    "getUserName ABCdef HTTPServer ǅungla ʰʲ", "I'VE we'll", "12345 ١٢٣", " \n\n x", "e\u0301 İ", "日本語ひらがなABC",
    "👩\u200d👩\u200d👧 🏳️\u200d🌈", "\u00a0\u2003x\u3000y\x85z\u2028w", "a\r\n\r\n//\n/", " " * 40, "\x00\ufffd", "",
]  # fmt: skip
NAMED = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[THINK]"]
COUNT, SIZE = 20, 470  # of the 500 tokens the first 450 count


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return trained_ranks()


def tekken(ranks: Mapping[bytes, int], version: str = "v13", named: list[str] | None = NAMED) -> dict[str, Any]:
    """Return what stands in a tekken.json; before v11 it may list no control tokens."""
    config = {
        "pattern": PATTERN,
        "num_vocab_tokens": len(ranks),
        "default_vocab_size": SIZE,
        "default_num_special_tokens": COUNT,
        "version": version,
    }
    vocabulary = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in ranks.items()
    ]
    special = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(named or [])]
    return {"config": config, "vocab": vocabulary, **({} if named is None else {"special_tokens": special})}


def write(folder: Path, content: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
    (folder / "tekken.json").write_text(json.dumps(content))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_text_has_the_ids_that_mistral_common_gives_it(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    write(tmp_path, tekken(ranks))
    tokenizer = Tokenizer.from_str(read_text_files(tmp_path)["tokenizer.json"])
    known = {token: rank + COUNT for token, rank in ranks.items() if rank < SIZE - COUNT}
    pieces = regex.compile(PATTERN, regex.V1)
    for text in [*TEXTS, *MORE]:
        wanted = [id_ for piece in pieces.findall(text) for id_ in joined(piece.encode(), known)]
        assert tokenizer.encode(text).ids == [1, *wanted], text  # after <s>
        assert tokenizer.decode(wanted) == text
    assert tokenizer.get_vocab_size() == SIZE


def test_control_tokens_have_the_first_ids_and_names_where_the_file_names_them(
    tmp_path: Path, ranks: dict[bytes, int]
) -> None:
    write(tmp_path, tekken(ranks))
    files = read_text_files(tmp_path)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    assert tokenizer.encode("<s>[INST]<SPECIAL_6>[/INST]</s>[THINK]", add_special_tokens=False).ids == [
        1,
        3,
        6,
        4,
        2,
        5,
    ]
    assert tokenizer.decode([1, 3, 19, 5]) == ""
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"], settings.get("pad_token")) == ("<s>", "</s>", None)
    assert (settings["add_bos_token"], settings["tokenizer_class"]) == (True, "PreTrainedTokenizerFast")


def test_a_file_of_an_older_version_has_the_control_tokens_of_it(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    write(tmp_path, tekken(ranks, "v3", None))
    tokenizer = Tokenizer.from_str(read_text_files(tmp_path)["tokenizer.json"])
    assert [tokenizer.token_to_id(name) for name in ("<unk>", "[TOOL_CALLS]", "<pad>", "[TOOL_CONTENT]")] == [
        0, 9, 11, 19,
    ]  # fmt: skip


def test_settings_beside_it_count(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    own = {"7": {"content": "[ARGS]", "special": True}, "1": {"content": "<s>", "special": True}}
    chat = {
        "tokenizer_class": "MistralCommonTokenizer",
        "add_bos_token": False,
        "pad_token": "[ARGS]",
        "added_tokens_decoder": own,
        "chat_template": "{{ messages[0].content }}",
    }
    write(tmp_path, tekken(ranks), chat)
    files = read_text_files(tmp_path)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    assert tokenizer.encode("[ARGS]</s>").ids == [7, 2]
    assert files["chat_template.jinja"] == chat["chat_template"]
    assert json.loads(files["tokenizer_config.json"])["pad_token"] == "[ARGS]"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"3": {"content": "[X]"}}}))
    with pytest.raises(CheckpointError, match=r"has '\[X\]' as the id 3, which is '\[INST\]' in tekken\.json"):
        read_text_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"9": {"content": "</s>"}}}))
    with pytest.raises(CheckpointError, match=r"'</s>' has the ids 2 and 9"):
        read_text_files(tmp_path)


def test_a_folder_without_a_chat_template_says_where_it_is(
    tmp_path: Path, ranks: dict[bytes, int], save_llama: Callable[..., Any]
) -> None:
    save_llama(tmp_path, vocab_size=SIZE)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink(missing_ok=True)
    write(tmp_path, tekken(ranks))
    (note,) = HuggingFaceCheckpoint(tmp_path).notes
    assert note.startswith("It has no chat template: Mistral AI has it as code, in the package mistral-common")
    assert note.endswith("Put it into chat_template.jinja of the source's folder.")
    (tmp_path / "chat_template.jinja").write_text("T")
    assert HuggingFaceCheckpoint(tmp_path).notes == ()


def _config(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["config"].update(values)


def _token(place: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["vocab"][place].update(values)


def _special(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(special_tokens=value)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another split": (_config(pattern=r"\S+"), r"config\.pattern is '\\\\S\+', which is not how .* Take a GGUF file"),
    "no config": (lambda content: content.update(config=[]), r"config\.pattern is None"),
    "no number of control tokens": (
        _config(default_num_special_tokens="20"), r"config\.default_num_special_tokens is '20'; .* from 0 to 8192",
    ),
    "too small": (_config(default_vocab_size=19), r"config\.default_vocab_size is 19; .* from 20 to 262144"),
    "too large": (
        _config(default_vocab_size=600), r"tekken\.json has 500 tokens in vocab; .* say at least 580\. Download it",
    ),
    "no vocabulary": (lambda content: content.update(vocab={}), "has no tokens in vocab"),
    "no control tokens": (_special(None), r"special_tokens is None; .* v1, v2, v3, v7 alone \(config\.version is 'v13"),
    "two of one rank": (
        _special([{"rank": 0, "token_str": "a"}, {"rank": 0, "token_str": "b"}]),
        r"of special_tokens \{'rank': 0, 'token_str': 'b'\} has no token_str, or no rank of its own below .* \(20\)",
    ),
    "a control token behind": (_special([{"rank": 20, "token_str": "a"}]), "no rank of its own"),
    "a control token without a name": (_special([{"rank": 0}]), "has no token_str"),
    "a control token that is none": (_special(["<s>"]), "of special_tokens '<s>' has no"),
    "two control tokens of one name": (
        _special([{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]), "the added token 'a' has the ids",
    ),
    "another rank": (_token(300, rank=301), "in vocab is not the token of the rank 300, with up to 512 bytes"),
    "no base64": (_token(300, token_bytes="A*=="), "is not the token of the rank 300"),
    "nothing": (_token(300, token_bytes=""), "is not the token of the rank 300"),
    "no text": (_token(300, token_bytes=7), "is not the token of the rank 300"),
    "a token that is none": (lambda content: content["vocab"].insert(300, None), "None in vocab is not the token"),
    "a token twice": (_token(300, token_bytes="AA=="), r"b'\\x00' has the ranks 0 and 300 in vocab"),
    "a byte without a token": (_token(7, token_bytes="YWJhYmFi"), r"has no token for the byte 7\."),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_none_is_refused(tmp_path: Path, ranks: dict[bytes, int], case: str) -> None:
    spoil, told = BROKEN[case]
    content = tekken(ranks)
    spoil(content)
    write(tmp_path, content)
    with pytest.raises(CheckpointError, match=told):
        read_text_files(tmp_path)


def test_what_would_take_too_much_is_refused(
    tmp_path: Path, ranks: dict[bytes, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, tekken(ranks))
    monkeypatch.setitem(checkpoint_folder._MORE_VALUES, "tekken.json", 1000)
    with pytest.raises(CheckpointError, match=r"tekken\.json cannot be read as JSON: .* and at most 1000 are read"):
        read_text_files(tmp_path)
    monkeypatch.setitem(checkpoint_folder._LARGER, "tekken.json", 1000)
    with pytest.raises(CheckpointError, match=r"tekken\.json cannot be read: it has \d+ bytes, and at most 1000"):
        read_text_files(tmp_path)

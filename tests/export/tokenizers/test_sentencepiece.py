"""SentencePiece tokenizers, rebuilt as tokenizer.json, beside the library that they are of."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import struct
import unicodedata
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import sentencepiece
from sentencepiece import SentencePieceProcessor
from tokenizer_corpus import CORPUS_TEXTS
from tokenizers import Tokenizer as Tokenizers
from transformers import AutoTokenizer, GPTSw3Tokenizer

from edgelm import CheckpointError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.gguf.tokenizer import tokenizer_files
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.tokenizers import piece_pairs, sentencepiece_tokenizer
from edgelm_export.tokenizers.sentencepiece_model import Kind, PieceType, SentencePieceModel, read_sentencepiece
from edgelm_export.tokenizers.sentencepiece_tokenizer import sentencepiece_json

TEXTS = [
    *CORPUS_TEXTS,
    "a<table>b  c <table> d ▁x▁", "  <table> x", "<0x41> and <0x0A>", "<s>hi</s> <unk>", " sea sea  ", "① ﬁ Å",
    "\t\ttab\n", "x\u200by", "   ", "▁", "don't  stop", unicodedata.normalize("NFD", "é, tiếng Việt, ガで, 각, ё"),
    # What NFC would put in another order, or compose across a mark or with a composed letter.
    "\u05d1\u05bc\u05b0\u05e8", "\u0627\u0644\u0644\u0651\u064e\u0647", "\u0627\u0650\u0655", "ti\u00ea\u0301ng",
    "o\u0302\u0323", "\uac00\u11a8", "\u0f40\u0f74\u0f73", "\u0301a\u0328\u0301",
]  # fmt: skip
# Without a normalization, and as it comes: NFKC with extra spaces removed.
AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
TRAINED: dict[str, dict[str, Any]] = {
    "bpe, as Llama's": {
        "model_type": "bpe", "byte_fallback": True, "split_digits": True,
        "allow_whitespace_only_pieces": True, **AS_IT_IS,
    },
    "bpe, as Gemma's": {
        "model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False, **AS_IT_IS,
        "user_defined_symbols": ["<table>", "▁▁", "▁▁▁", "\n", "\n\n"],
    },
    "bpe, as it comes": {"model_type": "bpe", "user_defined_symbols": ["<table>"]},
    "unigram, as it comes": {"model_type": "unigram"},
    "unigram with bytes and a symbol": {
        "model_type": "unigram", "byte_fallback": True, "user_defined_symbols": ["<table>"],
    },
    "unigram without normalization": {"model_type": "unigram", "byte_fallback": True, **AS_IT_IS},
}  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> dict[str, bytes]:
    """Models of 600 pieces, trained on the texts of these tests."""
    lines = [line for text in TEXTS for line in text.split("\n") if line.strip()]
    models = {}
    for name, options in TRAINED.items():
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 3), model_writer=written, vocab_size=600, hard_vocab_limit=False,
            minloglevel=2, num_threads=1, **options,
        )  # fmt: skip
        models[name] = written.getvalue()
    return models


def check_ids(name: str, found: list[int], expected: list[int], text: str) -> None:
    """A unigram of pieces that repeat (`~~` and `~`) has several best orders, and float32 decides between them."""
    if "unigram" in name and found != expected:
        found, expected = sorted(found), sorted(expected)
    assert found == expected, text


def gguf_metadata(model: SentencePieceModel) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece model."""
    return {
        "tokenizer.ggml.model": {"bpe": "llama", "unigram": "t5"}[model.kind],
        "tokenizer.ggml.tokens": list(model.texts),
        "tokenizer.ggml.scores": model.scores.tolist(),
        "tokenizer.ggml.token_type": list(model.types),
        "tokenizer.ggml.add_space_prefix": model.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": model.remove_extra_whitespaces,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **({"tokenizer.ggml.precompiled_charsmap": list(model.charsmap)} if model.charsmap else {}),
    }


def test_places_without_a_token_that_a_gguf_file_calls_unknown_are_unused(
    tmp_path: Path, trained: dict[str, bytes]
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained["bpe, as Llama's"])
    metadata = gguf_metadata(read_sentencepiece(tmp_path / "tokenizer.model"))
    expected = tokenizer_files(metadata)
    metadata["tokenizer.ggml.tokens"] += ["[PAD1]", "[PAD2]"]  # as in Phi-3's files
    metadata["tokenizer.ggml.scores"] += [-1000.0, -1000.0]
    metadata["tokenizer.ggml.token_type"][0] = int(PieceType.CONTROL)
    metadata["tokenizer.ggml.token_type"] += [int(PieceType.UNKNOWN)] * 2
    assert tokenizer_files(metadata) == expected
    del metadata["tokenizer.ggml.unknown_token_id"]
    with pytest.raises(CheckpointError, match="all stand for the unknown; there must be one"):
        tokenizer_files(metadata)


def test_white_space_behind_a_token_of_phi_3_goes_with_it(tmp_path: Path, trained: dict[str, bytes]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained["bpe, as Llama's"])
    metadata = gguf_metadata(read_sentencepiece(tmp_path / "tokenizer.model"))
    for token, type_ in (("<|endoftext|>", 4), ("<|user|>", 3), ("<|end|>", 4)):
        metadata["tokenizer.ggml.tokens"].append(token)
        metadata["tokenizer.ggml.scores"].append(-1000.0)
        metadata["tokenizer.ggml.token_type"].append(type_)
    end_of_text, user, end = range(len(metadata["tokenizer.ggml.tokens"]))[-3:]
    text = "<s><|user|>\nthe sea<|end|>\n\n<|endoftext|> the"
    for architecture in ("phi3", "llama"):
        tokenizer = Tokenizer.load(
            write(tmp_path / architecture, tokenizer_files({**metadata, "general.architecture": architecture}))
        )
        sea, line = tokenizer.encode("the sea"), tokenizer.encode("\n\n")
        stripped = [1, user, *sea, end, end_of_text, *tokenizer.encode(" the")]
        kept = [1, user, *tokenizer.encode("\nthe sea"), end, *line, end_of_text, *tokenizer.encode(" the")]
        assert tokenizer.encode(text, control_tokens=True) == (stripped if architecture == "phi3" else kept)


def model_of(pieces: dict[str, PieceType], **changes: Any) -> SentencePieceModel:
    scores = np.zeros(len(pieces))
    return SentencePieceModel(kind="bpe", texts=list(pieces), scores=scores, types=bytes(pieces.values()), **changes)


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("source", ["tokenizer.model", "spiece.model", "gguf"])
@pytest.mark.parametrize("name", TRAINED)
def test_every_text_becomes_the_ids_of_sentencepiece_and_comes_back(
    name: str, source: str, tmp_path: Path, trained: dict[str, bytes]
) -> None:
    original = SentencePieceProcessor(model_proto=trained[name])
    path = tmp_path / (source if source != "gguf" else "tokenizer.model")
    path.write_bytes(trained[name])
    is_gguf = source == "gguf"
    files = tokenizer_files(gguf_metadata(read_sentencepiece(path))) if is_gguf else read_text_files(tmp_path)
    tokenizer = Tokenizer.load(write(tmp_path / "rebuilt", files))
    for text in TEXTS:
        ids = original.encode(text)
        check_ids(name, tokenizer.encode(text), ids, text)
        if original.unk_id() not in ids:
            assert tokenizer.decode(ids) == original.decode(ids), text
    assert tokenizer.leading_ids == ((1,) if original.encode("a", add_bos=True) and "bpe" in name else ())


@pytest.mark.parametrize("name", TRAINED)
def test_transformers_loads_the_rebuilt_tokenizer(name: str, tmp_path: Path, trained: dict[str, bytes]) -> None:
    original = SentencePieceProcessor(model_proto=trained[name])
    (tmp_path / "tokenizer.model").write_bytes(trained[name])
    found = AutoTokenizer.from_pretrained(write(tmp_path / "rebuilt", read_text_files(tmp_path)))
    around = ([1], []) if "bpe" in name else ([], [2])
    for text in TEXTS:
        if "<s>" not in text and "<table>" not in text:  # control tokens are found in a text there
            check_ids(name, found(text)["input_ids"], [*around[0], *original.encode(text), *around[1]], text)
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")


def test_a_folder_adds_its_tokens_and_says_what_stands_around_a_text(tmp_path: Path, trained: dict[str, bytes]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained["bpe, as Llama's"])
    size = SentencePieceProcessor(model_proto=trained["bpe, as Llama's"]).get_piece_size()
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": True, "chat_template": "{{ 1 }}",
        "eos_token": {"content": "<|end|>"}, "auto_map": {"AutoTokenizer": "code.py"},
        "added_tokens_decoder": {
            "0": {"content": "<unk>", "special": True},
            "1": {"content": "<s>", "special": False},  # which it is in the model all the same
            str(size): {"content": "<|end|>", "special": True, "rstrip": True},
            str(size + 1): {"content": "<tool>", "special": False},
        },
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    files = read_text_files(tmp_path)
    assert files["chat_template.jinja"] == "{{ 1 }}"
    settings = json.loads(files["tokenizer_config.json"])
    assert not settings.keys() & {"auto_map", "added_tokens_decoder"}
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    tokenizer = Tokenizer.load(write(tmp_path / "rebuilt", files))
    assert (tokenizer.control_tokens["<|end|>"], tokenizer.control_tokens["<s>"]) == (size, 1)
    assert tokenizer.encode("<tool>", control_tokens=True) == [size + 1]
    found = AutoTokenizer.from_pretrained(tmp_path / "rebuilt")
    assert found("a")["input_ids"][-1] == size
    # Older versions of transformers kept them in a file of their own.
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<tool>": size}))
    tokenizer = Tokenizer.load(write(tmp_path / "older", read_text_files(tmp_path)))
    assert (tokenizer.id_of("<tool>"), tokenizer.leading_ids) == (size, (1,))


def test_a_folder_of_gpt_sw3_gives_the_ids_of_its_class(tmp_path: Path, trained: dict[str, bytes]) -> None:
    (tmp_path / "spiece.model").write_bytes(trained["bpe, as Llama's"])
    config = {"tokenizer_class": "GPTSw3Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = GPTSw3Tokenizer(str(tmp_path / "spiece.model"), name_or_path="sw3", **config)
    tokenizer = Tokenizer.load(write(tmp_path / "rebuilt", read_text_files(tmp_path)))
    every = "".join(f"a{chr(code)}b" for code in (*range(1, 256), *range(0x2000, 0x2070), 0x3000, 0xFFFC))
    for text in (*TEXTS, every, "A\u030a och a\u0308", ""):
        if not any(token in text for token in ("<s>", "</s>", "<unk>")):  # which are found in a text there
            assert tokenizer.encode(text) == theirs(text)["input_ids"], text
    assert tokenizer.leading_ids == ()


FOLDERS: dict[str, tuple[dict[str, Any], str]] = {
    "no content": ({"added_tokens_decoder": {"600": {}}}, r"the added token '600' is \{\}; it has an id and a content"),
    "an id beyond all": ({"added_tokens_decoder": {"9" * 9: {"content": "x"}}}, "the added token '999999999' is"),
    "no id": ({"added_tokens_decoder": {"x": {"content": "x"}}}, "the added token 'x' is"),
    "a gap": ({"added_tokens_decoder": {"99999": {"content": "x"}}}, "the id 99999 of an added token leaves a gap"),
    "twice": ({"added_tokens_decoder": {"0": {"content": "</s>", "special": True}}}, "tokens 0 and 2 are both '</s>'"),
    "nothing to add": ({"add_bos_token": True, "bos_token": 7}, "add_bos_token is set, but there is no bos_token"),
    "an unknown one": ({"add_bos_token": True, "bos_token": "<no>"}, "tokenizer.model: .* there is no token '<no>'"),
    "tokens in code": ({"tokenizer_class": "ChatGLMTokenizer"}, "control tokens of a 'ChatGLMTokenizer' are in its"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_settings_that_do_not_fit_the_model_are_errors(case: str, tmp_path: Path, trained: dict[str, bytes]) -> None:
    config, message = FOLDERS[case]
    (tmp_path / "tokenizer.model").write_bytes(trained["bpe, as Llama's"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        read_text_files(tmp_path)


def varint(number: int, value: int) -> bytes:
    return bytes([number << 3, value])


def message(number: int, content: bytes) -> bytes:
    tag = number << 3 | 2
    return (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + bytes([len(content)]) + content


def piece(text: str, type_: int) -> bytes:
    return message(1, message(1, text.encode()) + varint(3, type_))


UNKNOWN = piece("<unk>", 2)
SCORE = b"\x15" + bytes(4)


def test_runs_of_spaces_that_score_alike_are_merged_as_sentencepiece_merges_them(tmp_path: Path) -> None:
    # As in Llama's and Mistral's vocabularies, of which no piece has 15.
    runs = [piece("▁" * length, 1) for length in (1, 2, 4, 8, 5, 6, 16, 12, 13, 10, 14, 3, 9, 7, 11)]
    as_it_is = message(3, varint(3, 0) + varint(4, 0))
    data = b"".join([UNKNOWN, *runs, piece("a", 1), piece("▁a", 1), message(2, varint(3, 2)), as_it_is])
    (tmp_path / "tokenizer.model").write_bytes(data)
    original = SentencePieceProcessor(model_proto=data)

    tokenizer = Tokenizer.load(write(tmp_path / "rebuilt", read_text_files(tmp_path)))

    texts = [f"a{' ' * length}a" for length in range(60)]
    assert [tokenizer.encode(text) for text in texts] == [original.encode(text) for text in texts]


BROKEN = {
    "a word model": (UNKNOWN + message(2, varint(3, 3)), "has model type 3; supported are 1 .unigram. and 2 .bpe."),
    "spaces behind": (UNKNOWN + message(2, bytes([24 << 3 & 127 | 128, 1, 1])), "treat_whitespace_as_suffix"),
    "spaces as they are": (UNKNOWN + message(3, varint(5, 0)), "escape_whitespaces is off"),
    "a type": (piece("a", 9), "has the piece 'a' of type 9"),
    "two unknown": (UNKNOWN + piece("b", 2), r"Pieces \[0, 1\] all stand for the unknown"),
    "none unknown": (piece("a", 1), "No piece stands for the unknown, which a unigram tokenizer needs"),
    "no UTF-8": (message(1, message(1, b"\xff")), "is cut off or damaged"),
    "a score that is none": (UNKNOWN + message(1, b"\x0a\x01a\x15\x00\x00\xc0\x7f"), "'a', has the score nan"),
    "a NUL": (UNKNOWN + message(1, message(1, b"a\0b") + SCORE), "a piece holds a NUL"),
    "cut off": (UNKNOWN[:-3], "tokenizer.model is cut off or damaged"),
    "cut off in a score": (UNKNOWN + message(1, b"\x0a\x01a" + SCORE)[:-1], "a piece goes past the end"),
    "more pieces than any model has": (message(1, b"\x0a\x00" + SCORE) * 270_337, "has more than 270336 pieces"),
    "more fields than any model has": (UNKNOWN + varint(4, 1) * 10_241, "has more than 10240 fields"),
    "of tiktoken": (b"IQ== 0\nIg== 1\n", "tokenizer.model is a list of tokens for tiktoken"),
    "not protobuf": (b"\x0b" * 9, "is damaged .wire type 3."),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_is_broken_or_not_supported_is_refused(case: str, tmp_path: Path) -> None:
    data, message = BROKEN[case]
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_pieces_are_read_in_whatever_way_they_are_written(tmp_path: Path) -> None:
    """Protocol buffers has fields in any order, and numbers of more bytes than they need."""
    score, long = b"\x15" + struct.pack("<f", -2.5), "▁" * 60
    pieces = [
        message(1, message(1, b"plain") + score),
        message(1, message(1, b"typed") + score + varint(3, 4)),
        message(1, varint(3, 4) + score + message(1, "zurück".encode())),
        message(1, message(1, b"again") + score + score),
        message(1, message(1, b"wide") + score + b"\x18\x84\x00"),
        b"\x0a\xbc\x01\x0a\xb4\x01" + long.encode() + score,
        message(1, message(1, b"no score")),
        message(1, score),
    ]
    (tmp_path / "tokenizer.model").write_bytes(UNKNOWN + b"".join(pieces))

    model = read_sentencepiece(tmp_path / "tokenizer.model")

    assert model.texts == ["<unk>", "plain", "typed", "zurück", "again", "wide", long, "no score", ""]
    assert model.scores.tolist() == [0, -2.5, -2.5, -2.5, -2.5, -2.5, -2.5, 0, -2.5]
    assert model.types == bytes([2, 1, 4, 4, 1, 4, 1, 1, 1])
    theirs = SentencePieceProcessor(model_proto=UNKNOWN + b"".join(pieces[:-1]))
    assert [theirs.id_to_piece(i) for i in range(8)] == model.texts[:-1]
    assert [theirs.get_score(i) for i in range(8)] == model.scores.tolist()[:-1]


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}),
        ({"pad_id": 3, "bos_id": -1, "eos_id": 2}, {"unk": "<unk>", "eos": "</s>", "pad": "<pad>"}),
        (
            {"unk_piece": "<u>", "bos_piece": "<b>", "eos_piece": "<e>", "pad_piece": "<p>", "pad_id": 3},
            {"unk": "<u>", "bos": "<b>", "eos": "<e>", "pad": "<p>"},
        ),
    ],
    ids=["by default", "without a beginning", "by other names"],
)
def test_the_pieces_with_a_role_are_those_of_the_training(
    options: dict[str, Any], roles: dict[str, str], tmp_path: Path
) -> None:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[:20]), model_writer=written, vocab_size=200, hard_vocab_limit=False,
        minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    assert read_sentencepiece(tmp_path / "tokenizer.model").roles == roles


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing or not a regular file"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_a_damaged_model_is_read_or_refused_and_nothing_else(tmp_path: Path, trained: dict[str, bytes]) -> None:
    path, data = tmp_path / "tokenizer.model", trained["bpe, as Llama's"]
    for place in range(0, len(data), 97):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            path.write_bytes(damaged)
            with contextlib.suppress(CheckpointError):
                read_sentencepiece(path)


def test_a_symbol_that_the_normalization_changes_is_refused() -> None:
    pieces = {"<unk>": PieceType.UNKNOWN, "①": PieceType.USER_DEFINED}
    model = model_of(pieces, charsmap=b"x", remove_extra_whitespaces=True)
    with pytest.raises(CheckpointError, match="its user-defined piece '①' would be normalized"):
        sentencepiece_json(model)
    pieces = {"<unk>": PieceType.UNKNOWN, "▁▁": PieceType.USER_DEFINED}
    sentencepiece_json(model_of(pieces))
    with pytest.raises(CheckpointError, match="its user-defined piece '  ' would be normalized"):
        sentencepiece_json(model_of(pieces, remove_extra_whitespaces=True))


def test_a_piece_twice_is_refused() -> None:
    model = SentencePieceModel(kind="bpe", texts=["a", "b", "a"], scores=np.zeros(3), types=bytes([1, 1, 1]))
    with pytest.raises(CheckpointError, match="cannot be rebuilt: tokens 0 and 2 are both 'a'"):
        sentencepiece_json(model)
    assert sentencepiece_json(dataclasses.replace(model, types=bytes([1, 1, PieceType.UNUSED])))


def merges_of(model: SentencePieceModel) -> list[str]:
    merges: list[str] = json.loads(sentencepiece_json(model))["model"]["merges"]
    return merges


def test_longer_pieces_and_more_pairs_than_any_model_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = {"<unk>": PieceType.UNKNOWN} | dict.fromkeys(["a", "aa", "aaa", "aaaa"], PieceType.NORMAL)
    monkeypatch.setattr(sentencepiece_tokenizer, "_MAX_CHARACTERS", 20)  # 2 of "aa", 6 of "aaa", 12 of "aaaa"
    assert len(merges_of(model_of(pieces))) == 6
    monkeypatch.setattr(sentencepiece_tokenizer, "_MAX_MERGES", 5)
    with pytest.raises(CheckpointError, match="cannot be rebuilt: more than 5 pairs of its pieces make a piece"):
        sentencepiece_json(model_of(pieces))
    monkeypatch.setattr(sentencepiece_tokenizer, "_MAX_CHARACTERS", 19)
    with pytest.raises(CheckpointError, match=r"cannot be rebuilt: its pieces have 20 characters .*; at most 19 are"):
        sentencepiece_json(model_of(pieces))


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["ab", "ba"], "two pieces have the same number"), (["abx", "ba", "x"], "a part has the number of another piece")],
)
def test_pieces_that_are_told_apart_by_no_number_are_refused(
    texts: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(piece_pairs, "_multiplier", lambda: 1)  # a number is the sum of the characters
    with pytest.raises(CheckpointError, match=f"cannot be rebuilt: {message}"):
        sentencepiece_json(model_of(dict.fromkeys(texts, PieceType.NORMAL)))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_the_text_is_the_one_that_json_would_write(kind: Kind) -> None:
    texts = ["<unk>", '"', "\\", '\\"', "\n", "é", "😀", "😀é", "", "a", "unused"]
    types = [PieceType.UNKNOWN, *[PieceType.NORMAL] * 9, PieceType.UNUSED]
    scores = np.array([0.0, -1.5, 1e-7, *[-0.1] * 8])
    model = SentencePieceModel(kind=kind, texts=texts, scores=scores, types=bytes(types))

    text = sentencepiece_json(model)

    assert text == json.dumps(json.loads(text), ensure_ascii=False) + "\n"


def test_the_pairs_are_all_ways_to_cut_a_piece_in_two_pieces() -> None:
    random = Random(0)
    texts = sorted({"".join(random.choices("ab▁", k=random.randrange(7))) for _ in range(600)})  # "" is one of them
    random.shuffle(texts)
    scores = np.array([random.randrange(4) for _ in texts], float)
    model = dataclasses.replace(model_of(dict.fromkeys(texts, PieceType.NORMAL)), scores=scores)

    merges = merges_of(model)

    ids = {text: index for index, text in enumerate(texts)}
    order = {text: (-len(text), index) for text, index in ids.items()}
    every = [
        (-scores[ids[text]], order[text[:place]], order[text[place:]])
        for text in texts
        for place in range(1, len(text))
        if {text[:place], text[place:]} <= ids.keys()
    ]
    assert len(every) > 500
    assert merges == [f"{texts[left]} {texts[right]}" for _, (_, left), (_, right) in sorted(every)]


@pytest.mark.parametrize("text", ["a b", "#versions"])
def test_a_pair_is_no_text_where_that_would_be_read_as_another_or_a_comment(text: str) -> None:
    model = model_of(dict.fromkeys(["<unk>", "c", text, f"{text}c"], PieceType.NORMAL))
    spec = sentencepiece_json(model)
    assert json.loads(spec)["model"]["merges"] == [[text, "c"]]
    assert Tokenizers.from_str(spec).get_vocab_size() == 4


def test_unused_pieces_have_no_token(tmp_path: Path) -> None:
    types = {"<unk>": 2, "a": 1, "b": 1, "ab": 5, "▁": 1}
    for kind in ("llama", "t5"):
        metadata = {
            "tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": list(types), "tokenizer.ggml.scores": [-1.0] * 5,
            "tokenizer.ggml.token_type": list(types.values()), "tokenizer.ggml.add_bos_token": False,
            "tokenizer.ggml.add_eos_token": False,
        }  # fmt: skip
        tokenizer = Tokenizer.load(write(tmp_path / kind, tokenizer_files(metadata)))
        assert tokenizer.encode("ab") == [4, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0]}, "tokenizer.ggml.scores has 1 entries for 2 tokens"),
        ({"token_type": [2, 7]}, "Token 'a' has type 7, which SentencePiece does not have"),
        ({"precompiled_charsmap": ["x"]}, "precompiled_charsmap is no array of bytes"),
    ],
)
def test_metadata_that_makes_no_sentencepiece_model_is_an_error(changes: dict[str, Any], message: str) -> None:
    values = {"model": "llama", "tokens": ["<unk>", "a"], "scores": [0.0, 0.0], "token_type": [2, 1], **changes}
    with pytest.raises(CheckpointError, match=message):
        tokenizer_files({f"tokenizer.ggml.{key}": value for key, value in values.items()})

"""Gemma 4's tokenizer from a GGUF file: the ids that transformers' class gives for the same vocabulary and merges."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import GemmaTokenizer

from edgelm import CheckpointError
from edgelm_export.gguf.tokenizer import tokenizer_files

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
TEXT = "the sea is blue\n\n\nand   the sky is grey; the wind sings  in the morning, größe 海\t"
TEXTS = [
    "the sea", " the  sea ", "\n\n\n\n", "a\n b\n\n  c\t\t", "größe ½ 🌊 海", "<0x41><|turn>the sea<turn|> <|call> x",
    "▁the", "",
]  # fmt: skip


def vocabulary() -> tuple[dict[str, int], list[str]]:
    """A vocabulary of control tokens, one that the user defined, 256 bytes, and what 60 merges make."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.train_from_iterator([TEXT * 3], BpeTrainer(vocab_size=90, show_progress=False))
    learned = tokenizer.get_vocab()
    tokens = [*CONTROL, "<|call>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(learned, key=learned.__getitem__)
    ids = {token: index for index, token in enumerate(tokens)}
    return ids, [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def metadata(**changes: Any) -> dict[str, Any]:
    ids, merges = vocabulary()
    values = {
        "model": "gemma4",
        "tokens": list(ids),
        "token_type": [3] * len(CONTROL) + [4] + [6] * 256 + [1] * (len(ids) - len(CONTROL) - 257),
        "merges": merges,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "padding_token_id": 0,
        "add_space_prefix": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}


def test_texts_have_the_ids_of_transformers_class() -> None:
    ids, merges = vocabulary()
    theirs = GemmaTokenizer(vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges])
    theirs.add_special_tokens({"additional_special_tokens": ["<|turn>", "<turn|>"]})
    theirs.add_tokens(["<|call>"])
    ours = Tokenizer.from_str(tokenizer_files(metadata())["tokenizer.json"])
    for text in (*TEXTS, TEXT):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        got = ours.encode(text, add_special_tokens=False).ids
        assert got == expected, text
        assert ours.decode(got, skip_special_tokens=False) == text.replace("▁", " ")
        assert ours.encode(text).ids == [2, *got]  # as llama.cpp begins every text of this model


def test_sarvams_is_one_under_another_name_without_a_token_before_a_text() -> None:
    files = tokenizer_files(metadata(model="gpt2", pre="sarvam-moe"))
    ours, gemmas = (Tokenizer.from_str(each["tokenizer.json"]) for each in (files, tokenizer_files(metadata())))
    for text in TEXTS:
        assert ours.encode(text).ids == gemmas.encode(text, add_special_tokens=False).ids


def test_what_the_user_defined_stays_in_a_text_and_control_tokens_do_not() -> None:
    ours = Tokenizer.from_str(tokenizer_files(metadata())["tokenizer.json"])
    assert ours.decode(ours.encode("<|turn>the<|call>").ids) == "the<|call>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_type": [7]}, "token_type has 1 entries"),
        ({"merges": ["the sea"]}, "Merge 0 of .* does not join two tokens to one"),
        ({"merges": None}, "merges is missing"),
        ({"unknown_token_id": 10**6}, "unknown_token_id is 1000000, which is no token"),
    ],
)
def test_broken_metadata_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokenizer_files(metadata(**changes))


def test_a_token_of_an_unknown_type_is_refused() -> None:
    values = metadata()
    values["tokenizer.ggml.token_type"][0] = 9
    with pytest.raises(CheckpointError, match="Token '<pad>' has type 9, which BPE of characters does not have"):
        tokenizer_files(values)

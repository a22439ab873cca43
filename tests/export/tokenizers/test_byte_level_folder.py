"""Byte-level BPE of vocab.json and merges.txt, rebuilt as tokenizer.json, beside transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizer_corpus import CORPUS_TEXTS
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from edgelm import CheckpointError
from edgelm.text.tokenizer import Tokenizer
from edgelm_export.sources.checkpoint_folder import read_text_files
from edgelm_export.tokenizers.byte_level_folder import CLASSES, tokenizer_class
from edgelm_export.tokenizers.byte_level_tokenizer import joins_two_tokens

TEXTS = [
    *CORPUS_TEXTS,
    "a<table>b  c <table> d", "  <table> x<table>", "<s>hi</s> <unk>", "x <mask> y", " @tool  @tool", "a@toolb @tool c",
    "\u212b [\u212b] [\u00c5]", "  1  22   333", "'Re 'RE 're", "<|padding|>pad", "[PAD] x",
]  # fmt: skip


def described(content: str, **changes: Any) -> dict[str, Any]:
    """A token as transformers writes it."""
    plain = {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return plain | changes


def control(content: str, **changes: Any) -> dict[str, Any]:
    return described(content, special=True, **changes)


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges of a model of 900 tokens, trained on the texts of these tests."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


def write(folder: Path, trained: tuple[dict[str, int], list[str]], files: dict[str, Any]) -> Path:
    """Write a folder as transformers' slow tokenizers do; `files` are the settings, and what is to be otherwise."""
    vocabulary, merges = trained
    folder.mkdir(exist_ok=True)
    contents = {"vocab.json": vocabulary, "merges.txt": "\n".join(["#version: 0.2", *merges, ""]), **files}
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def rebuilt(folder: Path) -> Path:
    for name, content in read_text_files(folder).items():
        (folder / "rebuilt" / name).parent.mkdir(exist_ok=True)
        (folder / "rebuilt" / name).write_text(content, encoding="utf-8")
    return folder / "rebuilt"


ADDED = {
    "0": control("<|endoftext|>"),
    "900": control("<|im_start|>"),
    "901": control("<|im_end|>"),
    "902": described("<table>", special=False, normalized=True),
    "903": control("<mask>", lstrip=True),
    "904": described("@tool", special=False, rstrip=True, single_word=True),
    "905": described("[\u00c5]", special=False, normalized=True),
}
# Phi-2 has such, of up to 31 spaces.
BLANKS = {
    str(906 + place): described(blank, special=False, normalized=True)
    for place, blank in enumerate(["  ", "   ", "    ", "\t\t", "\t\t\t"])
}
CHAT = {
    "added_tokens_decoder": ADDED,
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "bos_token": "<|im_start|>",
    "eos_token": control("<|im_end|>", __type="AddedToken"),
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "chat_template": "{{ messages }}",
    "model_max_length": 2048,
}
OLDER = {
    "added_tokens.json": {"<|im_end|>": 901, "<|im_start|>": 900, "<table>": 902},
    "special_tokens_map.json": {
        "bos_token": described("<|im_start|>"),
        "eos_token": "<|im_end|>",
        "mask_token": described("<mask>", lstrip=True),
        "additional_special_tokens": ["<|im_start|>", "@tool"],
    },
}
# name -> the class of transformers, its settings, and the other files.
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GPT-2": ("GPT2Tokenizer", CHAT, {}),
    "GPT-2, of older days": ("GPT2Tokenizer", {"model_max_length": 1024}, {}),
    "GPT-2, of older days, with tokens": ("GPT2Tokenizer", {}, OLDER),
    "GPT-2, whose settings say it all": ("GPT2Tokenizer", CHAT, {"special_tokens_map.json": {"eos_token": "@tool"}}),
    "GPT-2 with a space": ("GPT2Tokenizer", CHAT | {"add_prefix_space": True}, {}),
    "GPT-2 with a begin token": ("GPT2Tokenizer", CHAT | {"add_bos_token": True}, {}),
    "GPT-2 with both": ("GPT2Tokenizer", {"add_bos_token": True, "add_eos_token": True}, {}),
    "GPT-2 with none to begin with": ("GPT2Tokenizer", {"add_bos_token": True, "bos_token": None}, {}),
    "GPT-2 with tokens of its own": (
        "GPT2Tokenizer",
        {"pad_token": "[PAD]", "tool_token": "@tool", "extra_special_tokens": {"table": "<table>"}}, {},
    ),
    "Qwen2": ("Qwen2Tokenizer", {key: value for key, value in CHAT.items() if key != "bos_token"}, {}),
    "Qwen2, of older days": (
        "Qwen2Tokenizer", {"add_bos_token": True, "add_prefix_space": False},
        {"added_tokens.json": OLDER["added_tokens.json"], "special_tokens_map.json": {"eos_token": "<|im_end|>"}},
    ),
    "Qwen2 with a space": ("Qwen2Tokenizer", {"add_prefix_space": True}, {}),
    "CodeGen": ("CodeGenTokenizer", CHAT | {"added_tokens_decoder": ADDED | BLANKS}, {}),
    "CodeGen, as Phi-2's": ("CodeGenTokenizer", {"add_prefix_space": True}, OLDER),
    "GPT-NeoX": ("GPTNeoXTokenizer", CHAT, {}),
    "GPT-NeoX, with a begin token": ("GPTNeoXTokenizer", {"add_bos_token": True}, OLDER),
    "RoBERTa": ("RobertaTokenizer", {"mask_token": described("<mask>", lstrip=True, __type="AddedToken")}, {}),
    "BART": ("BartTokenizer", {"add_prefix_space": True, "cls_token": "<s>", "sep_token": "<|endoftext|>"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_texts_have_the_ids_of_transformers_there_and_in_edgelm(
    name: str, tmp_path: Path, trained: tuple[dict[str, int], list[str]]
) -> None:
    class_, config, files = FOLDERS[name]
    folder = write(tmp_path, trained, {"tokenizer_config.json": config | {"tokenizer_class": class_}, **files})
    expected = getattr(transformers, class_).from_pretrained(folder)

    found = AutoTokenizer.from_pretrained(folder := rebuilt(folder))
    tokenizer = Tokenizer.load(folder)

    assert type(found) is PreTrainedTokenizerFast
    for text in TEXTS:
        ids = expected(text)["input_ids"]
        assert found(text)["input_ids"] == ids, text
        if "space" not in name:
            assert tokenizer.as_source(tokenizer.encode(text, control_tokens=True)) == ids, text
        assert found.decode(ids) == expected.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == expected.decode(ids, skip_special_tokens=True)
    assert found.get_vocab() == expected.get_vocab()
    assert set(found.all_special_ids) >= set(expected.all_special_ids)
    for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
        assert getattr(found, f"{role}_token_id") == getattr(expected, f"{role}_token_id")


def test_ids_are_those_that_the_files_say_where_they_leave_a_gap(
    tmp_path: Path, trained: tuple[dict[str, int], list[str]]
) -> None:
    """transformers 5 counts on from the vocabulary instead; the slow tokenizers that wrote such files did not."""
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": {"1000": control("<|im_start|>")}}
    folder = rebuilt(write(tmp_path, trained, {"tokenizer_config.json": config | {"pad_token": "[PAD]"}}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("<|im_start|>[PAD]", control_tokens=True) == [1000, 1001]


def test_the_settings_are_written_for_the_class_that_reads_them(
    tmp_path: Path, trained: tuple[dict[str, int], list[str]]
) -> None:
    files = OLDER | {"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast", "errors": "replace", "x": 1}}
    assert json.loads(read_text_files(write(tmp_path, trained, files))["tokenizer_config.json"]) == {
        "x": 1,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "mask_token": "<mask>",
        "additional_special_tokens": ["<|im_start|>", "@tool"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_eos_token": False,
    }


def test_tokenizer_json_is_taken_where_there_is_one(tmp_path: Path, trained: tuple[dict[str, int], list[str]]) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer"}
    text = '{"model": {}}'
    folder = write(tmp_path, trained, {"tokenizer_config.json": config, "tokenizer.json": text, "merges.txt": "broken"})
    assert read_text_files(folder)["tokenizer.json"] == text


def test_the_lines_of_merges_may_end_as_on_windows(tmp_path: Path, trained: tuple[dict[str, int], list[str]]) -> None:
    config = {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}}
    expected = read_text_files(write(tmp_path, trained, config))
    lines = "\r\n".join(["#version: 0.2", *trained[1], "", ""])
    assert read_text_files(write(tmp_path, trained, config | {"merges.txt": lines})) == expected
    assert read_text_files(write(tmp_path, trained, config | {"merges.txt": "\n".join(trained[1])})) == expected


@pytest.mark.parametrize(
    ("files", "normalizer"),
    [
        ({"config.json": {"model_type": "gpt2"}}, None),
        ({"config.json": {"model_type": "qwen2"}}, {"type": "NFC"}),
        ({"config.json": {"model_type": "gpt2", "tokenizer_class": "Qwen2Tokenizer"}}, {"type": "NFC"}),
        (
            {
                "config.json": {"model_type": "qwen2", "tokenizer_class": "Qwen2Tokenizer"},
                "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"},
            },
            None,
        ),
    ],
)
def test_the_class_is_that_of_the_config_where_the_tokenizer_names_none(
    files: dict[str, Any], normalizer: object, tmp_path: Path, trained: tuple[dict[str, int], list[str]]
) -> None:
    assert json.loads(read_text_files(write(tmp_path, trained, files))["tokenizer.json"])["normalizer"] == normalizer


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "None"),
        ({"config.json": {"model_type": "bert"}}, "None"),
        ({"config.json": {"model_type": ["gpt2"]}}, "None"),
        (
            {"config.json": {"model_type": "gpt2"}, "tokenizer_config.json": {"tokenizer_class": "CTRLTokenizer"}},
            "'CTRL",
        ),
        ({"tokenizer_config.json": {"tokenizer_class": ["GPT2Tokenizer"]}}, r"\['GPT2Tokenizer'\]"),
        ({"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}, "'PreTrainedTokenizerFast'"),
    ],
)
def test_a_class_that_is_not_known_is_refused_by_name(
    files: dict[str, Any], found: str, tmp_path: Path, trained: tuple[dict[str, int], list[str]]
) -> None:
    message = (
        f"the tokenizer_class in tokenizer_config.json is {found}.*GPT2Tokenizer, .*from_pretrained.*save_pretrained"
    )
    with pytest.raises(CheckpointError, match=message):
        read_text_files(write(tmp_path, trained, files))


def settings(**values: Any) -> dict[str, Any]:
    return {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **values}}


def older(**values: Any) -> dict[str, Any]:
    return {**settings(), "special_tokens_map.json": values}


def listed(index: str, token: Any) -> dict[str, Any]:
    return settings(added_tokens_decoder={index: token})


SMALL = {"a": 0, "b": 1, "ab": 2, "": 3}
FEW: dict[str, Any] = {**settings(), "vocab.json": SMALL, "merges.txt": "a b\n"}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "an id in words": ({"vocab.json": {"a": "1"}}, r"vocab\.json: the token 'a' has the id '1'; ids are whole numbers"),
    "an id that is true": ({"vocab.json": {"a": True}}, "the token 'a' has the id True"),
    "an id below 0": ({"vocab.json": {"a": -1}}, "the token 'a' has the id -1"),
    "an id too large": ({"vocab.json": {"a": 10**8}}, "the token 'a' has the id 100000000; .* below 100000000"),
    "an id twice": ({"vocab.json": {"a": 0, "b": 0}}, r"vocab\.json: the tokens 'a' and 'b' have the same id, 0"),
    "a list for a vocabulary": ({"vocab.json": ["a"]}, r"vocab\.json holds a list; it must be a JSON object"),
    "half a character": ({"vocab.json": {**SMALL, "\ud800": 4}}, "would hold half of a surrogate pair"),
    "a merge of one": ({"merges.txt": "a b\nab"}, r"merges\.txt: line 2, 'ab', does not join two tokens to one"),
    "a merge of three": ({"merges.txt": "a b a"}, "line 1, 'a b a', does not join two tokens to one"),
    "a merge into nothing": ({"merges.txt": "#version: 1\n\nb a"}, "line 3, 'b a', does not join two tokens"),
    "a merge of nothing": ({"merges.txt": "a b\n a"}, "line 2, ' a', does not join two tokens to one"),
    "a second header": ({"merges.txt": "#version: 1\n#version: 1"}, "line 2, '#version: 1', does not join"),
    "a merge twice": ({"merges.txt": "#version: 1\na b\na b"}, r"merges\.txt: line 3, 'a b', is line 2 again"),
    "a token without content": (listed("4", {"id": 4}), r"_config\.json: the added token '4' is \{'id': 4\}; it"),
    "a token without id": (listed("x", control("x")), "the added token 'x' is .*; it has an id and a content"),
    "a token with an id of another's": (listed("0", control("x")), "the id 0 is both 'a' and the added 'x'"),
    "a token with two ids": (listed("7", control("a")), r"_config\.json: the added token 'a' has the ids 0 and 7"),
    "an older token with no id": (
        {**settings(), "added_tokens.json": {"x": None}}, r"added_tokens\.json: the added token 'None' is \{'con"
    ),
    "two older tokens of one id": (
        {**settings(), "added_tokens.json": {"x": 4, "y": 4}}, r"added_tokens\.json: the id 4 is both 'x' and the"
    ),
    "a role of no token": (settings(pad_token=7), r"tokenizer_config\.json: pad_token is 7; it must be a token"),
    "an older role of no token": (older(pad_token={"x": 1}), r"special_tokens_map\.json: pad_token is \{'x': 1\}; it"),
    "more of no tokens": (settings(additional_special_tokens=[7]), "additional_special_tokens is 7; it must be a"),
    "a flag in words": (settings(add_bos_token="yes"), r"_config\.json: add_bos_token is 'yes'; it must be true"),
    "a space in words": (settings(add_prefix_space=1), "add_prefix_space is 1; it must be true or false"),
    "more merges than any model has": ({"merges.txt": "\n" * 262_145}, r"merges\.txt has 262145 lines; at most 262144"),
    "a long merges.txt": ({"merges.txt": "a b\n" * (1 << 20) + "\n"}, r"merges\.txt cannot .*: it has 4194305 bytes"),
    "a long vocabulary": ({"vocab.json": "{" + " " * (4 << 20) + "}"}, r"vocab\.json cannot .*: it has 4194306 bytes"),
    "a vocabulary of lists": ({"vocab.json": '{"a":[' + "," * (1 << 18) + "]}"}, "brackets, and at most 262144 are"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_make_no_tokenizer_are_errors_that_name_the_file(case: str, tmp_path: Path) -> None:
    files, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message):
        read_text_files(write(tmp_path, ({}, []), FEW | files))


@pytest.mark.parametrize("model_type", ["bart", "gpt2", "gpt_neox", "phi", "qwen2", "qwen3", "qwen3_moe"])
def test_a_folder_older_than_the_setting_has_the_class_that_transformers_takes(model_type: str, tmp_path: Path) -> None:
    theirs = TOKENIZER_MAPPING_NAMES[model_type]
    assert tokenizer_class(tmp_path, {"config.json": {"model_type": model_type}}) is CLASSES[theirs]


@pytest.mark.parametrize(
    ("merge", "joins"),
    [("a b", True), ("a c", False), ("b a", False), ("ab c", False), ("a ", False), (" b", False), ("a b c", False)],
)
def test_a_merge_joins_two_tokens_to_a_third(merge: str, joins: bool) -> None:
    """Tokenizers ends the process where one of these does not."""
    vocabulary = {"": 0, "a": 1, "b": 2, "ab": 3, "b c": 4, "ab c": 5, "c": 6, "abc c": 7}
    assert joins_two_tokens(merge, vocabulary) is joins


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_one_file_without_the_other_is_an_error(missing: str, tmp_path: Path) -> None:
    (write(tmp_path, ({}, []), FEW) / missing).unlink()
    with pytest.raises(CheckpointError, match=rf"{missing} is missing\. Download the model again"):
        read_text_files(tmp_path)


def test_a_vocabulary_may_have_more_values_than_settings(tmp_path: Path) -> None:
    """Qwen2's has 151,643 tokens."""
    many = {f"{index}": index for index in range(151_643)}
    vocabulary = json.loads(read_text_files(write(tmp_path, (many, []), settings()))["tokenizer.json"])["model"][
        "vocab"
    ]
    assert vocabulary == many | {"<|endoftext|>": 151_643}


@pytest.fixture(scope="module")
def split_smollm2(smollm2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's own tokenizer, as the slow class would have saved it."""
    spec = json.loads((smollm2_checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    config = json.loads((smollm2_checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {
        "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": {token.pop("id"): token for token in spec["added_tokens"]},
    }
    files = {"tokenizer_config.json": config}
    return write(tmp_path_factory.mktemp("smollm2"), (spec["model"]["vocab"], merges), files)


@pytest.mark.real_model
def test_a_real_tokenizer_in_two_files_gives_the_ids_of_its_class_and_of_the_one_file(
    split_smollm2: Path, smollm2_checkpoint: Path
) -> None:
    """SmolLM2's tokenizer.json splits each digit off before all else, which GPT-2's class does not know."""
    of_class = transformers.GPT2Tokenizer.from_pretrained(split_smollm2)
    original, found = Tokenizer.load(smollm2_checkpoint), Tokenizer.load(rebuilt(split_smollm2))
    different = []
    for text in TEXTS:
        ids = found.encode(text, control_tokens=True)
        assert ids == of_class(text)["input_ids"], text
        if ids != original.encode(text, control_tokens=True):
            different.append(text)
    # Of other digits than 0 to 9, and of several spaces or ends of lines before one.
    assert [text[:9] for text in different] == ["\u00bd \u00b2 \u2167 \u0663\u0664\u0665", "| a | b |", "  1  22  "]

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizer_corpus import CORPUS
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgelm import CheckpointError
from edgelm_export.gguf.file import GGUFFile
from edgelm_export.gguf.tokenizer import tokenizer_files
from edgelm_export.tokenizers.byte_level_tokenizer import PRE_TOKENIZERS

LLAMA3 = ("llama-bpe", "llama-v3", "llama3", "lfm2", "falcon3", "falcon-h1", "midm-2.0", "pixtral")
COMPOSING = ("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen", "qwen35", "mpt", "olmo", "command-r")
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "1 2"]


def small_metadata(**changes: Any) -> dict[str, Any]:
    """Describe a vocabulary of 256 bytes, six merges and five other tokens; None takes a key out."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]
    tokens += ["<|end|>", "<|start|>", "<think>", "[PAD265]", "[PAD266]"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 262 + [3, 3, 4, 5, 5],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 263,
        "tokenizer.ggml.eos_token_id": 262,
        "tokenizer.ggml.add_bos_token": False,
    }
    metadata |= {f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def build(**changes: Any) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(small_metadata(**changes))["tokenizer.json"])


def save(metadata: dict[str, Any], folder: Path) -> PreTrainedTokenizerFast:
    for name, content in tokenizer_files(metadata).items():
        (folder / name).write_text(content, encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def test_text_becomes_the_ids_of_the_file_and_comes_back() -> None:
    tokenizer = build()
    assert tokenizer.encode("hello hello").ids == [259, 260]
    text = "hello\t größe 🌊\n\n  12 \x00"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_control_tokens_are_special_and_user_defined_ones_are_not() -> None:
    tokenizer = build()
    ids = tokenizer.encode("<|start|>hello<think><|end|>").ids
    assert ids == [263, 259, 264, 262]
    assert tokenizer.decode(ids) == "hello<think>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|start|>hello<think><|end|>"


@pytest.mark.parametrize("type_", [1, 4])
def test_an_end_of_turn_is_a_control_token_whatever_its_type(type_: int) -> None:
    """As in llama.cpp, which tells such tokens by their text."""
    tokenizer = build(ggml__token_type=[1] * 262 + [type_, 3, 4, 5, 5])
    ids = tokenizer.encode("hello<|end|>").ids
    assert ids == [259, 262]
    assert tokenizer.decode(ids) == "hello"


def test_a_tag_of_html_stays_the_text_that_it_is() -> None:
    """As in Gemma's vocabulary, which has it as a user-defined token."""
    tokens = [*small_metadata()["tokenizer.ggml.tokens"], "</s>"]
    tokenizer = build(ggml__tokens=tokens, ggml__token_type=[1] * 262 + [3, 3, 4, 5, 5, 4])
    assert tokenizer.encode("hello</s>").ids == [259, 267]
    assert tokenizer.decode([259, 267]) == "hello</s>"


def test_unused_tokens_are_left_out() -> None:
    tokenizer = build()
    assert tokenizer.get_vocab_size() == 265
    assert tokenizer.id_to_token(265) is None


def test_transformers_loads_the_folder_with_special_tokens_and_chat_template(tmp_path: Path) -> None:
    template = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"
    changes = {"ggml__unknown_token_id": 262, "ggml__padding_token_id": 262, "chat_template": template}
    tokenizer = save(small_metadata(**changes), tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<|end|>", "<|end|>")
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    conversation = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(conversation, tokenize=False) == "<|start|>hello<|end|>"
    assert tokenizer("hello")["input_ids"] == [259]


def test_without_a_chat_template_there_is_no_file_for_it() -> None:
    assert set(tokenizer_files(small_metadata())) == {"tokenizer.json", "tokenizer_config.json"}


def test_some_add_the_begin_token_where_the_file_says_nothing() -> None:
    for pre in PRE_TOKENIZERS:
        ids = build(ggml__pre=pre, ggml__add_bos_token=None).encode("hello").ids
        begins = (*LLAMA3, "deepseek-r1-qwen", "tekken", "command-r")
        assert ids == ([263, 259] if pre in begins else [259])


SPLITS = {
    "qwen35": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "seed-coder": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "tiny_aya": ["ĠI've", "Ġ", "1", "234", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI'VE"],
    "minicpm5": ["ĠI", "'ve", "Ġ", "123", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "deepseek-v3": ["ĠI", "'ve", "Ġ", "123", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "deepseek-coder": [
        "ĠI",
        "'",
        "ve",
        "Ġ",
        "1",
        "2",
        "3",
        "4",
        "Ġx",
        ".",
        "y",
        "Ċ",
        "Ċ",
        "Ġ",
        "Ġend",
        "ĠI",
        "'",
        "VE",
    ],
    "youtu": ["ĠI've", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI'VE"],
    "gpt-2": ["ĠI", "'ve", "Ġ1234", "Ġx", ".", "y", "ĊĊĠ", "Ġend", "ĠI", "'", "VE"],
    "smollm": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".", "y", "ĊĊĠ", "Ġend", "ĠI", "'", "VE"],
    "llama-bpe": ["ĠI", "'ve", "Ġ", "123", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "qwen2": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "laguna": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "gpt-4o": ["ĠI've", "Ġ", "123", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI'VE"],
    "afmoe": ["ĠI", "'ve", "Ġ", "1", "234", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "exaone-moe": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "ĠendĠI", "'VE"],
    "jais-2": ["ĠI", "'ve", "Ġ", "123", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "falcon": ["ĠI", "'", "ve", "Ġ", "123", "4", "Ġx", ".", "y", "ĊĊĠ", "Ġend", "ĠI", "'", "VE"],
    "bloom": ["ĠI've", "Ġ1234", "Ġx", ".", "y", "ĊĊĠ", "Ġend", "ĠI'VE"],
    "viking": ["ĠI've", "Ġ", "1", "2", "3", "4", "Ġx", ".", "y", "ĊĊĠ", "Ġend", "ĠI'VE"],
    "tekken": ["ĠI", "'ve", "Ġ", "1", "2", "3", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI", "'VE"],
    "kimi-k2": ["ĠI've", "Ġ", "123", "4", "Ġx", ".y", "ĊĊ", "Ġ", "Ġend", "ĠI'VE"],
}
ALIKE = {
    "gpt-2": ("phi-2", "exaone4", "mellum", "trillion", "a.x-4.0", "gigachat", "granite-docling", "mpt", "olmo"),
    "smollm": ("starcoder", "refact", "command-r", "exaone", "minerva-7b", "mellum2"),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "bailingmoe", "bailingmoe2", "kormo", "solar-open"),
    "llama-bpe": (*LLAMA3[1:], "smaug-bpe", "dbrx", "glm4", "glm5", "chatglm-bpe"),
    "gpt-4o": ("kanana2", "llama4", "minimax-m2"), "deepseek-v3": ("hunyuan-dense", "joyai-llm"),
    "deepseek-coder": (), "tekken": (), "qwen35": (),
    "seed-coder": (), "tiny_aya": ("cohere2moe",), "minicpm5": (), "deepseek-llm": (), "youtu": (),
    "laguna": (), "afmoe": (), "exaone-moe": (), "jais-2": (), "falcon": (), "kimi-k2": (),
    "bloom": ("poro-chat", "gpt3-finnish"), "viking": (),
}  # fmt: skip


SPLITS["deepseek-llm"] = SPLITS["deepseek-coder"]


@pytest.mark.parametrize("pre", SPLITS)
@pytest.mark.parametrize(("add_bos", "add_eos"), [(False, False), (True, False), (True, True)])
def test_begin_and_end_tokens_are_added_only_where_the_file_says_so(
    tmp_path: Path, pre: str, add_bos: bool, add_eos: bool
) -> None:
    changes = {"ggml__pre": pre, "ggml__add_bos_token": add_bos, "ggml__add_eos_token": add_eos}
    expected = [263] * add_bos + [259] + [262] * add_eos
    assert build(**changes).encode("hello").ids == expected
    assert save(small_metadata(**changes), tmp_path)("hello")["input_ids"] == expected


@pytest.mark.parametrize("pre", SPLITS)
def test_text_is_split_as_the_models_of_that_name_split_it(pre: str) -> None:
    splitter = build(ggml__pre=pre).pre_tokenizer
    assert splitter is not None
    assert [piece for piece, _ in splitter.pre_tokenize_str(" I've 1234 x.y\n\n  end I'VE")] == SPLITS[pre]


def test_laguna_takes_lines_apart_first() -> None:
    splitter = build(ggml__pre="laguna").pre_tokenizer
    assert splitter is not None
    assert [piece for piece, _ in splitter.pre_tokenize_str("x);\n\n \n  y")] == ["x", ");", "ĊĊ", "Ġ", "Ċ", "Ġ", "Ġy"]


def test_kimi_takes_han_characters_apart_from_other_letters() -> None:
    splitter = build(ggml__pre="kimi-k2").pre_tokenizer
    assert splitter is not None
    text = "中文getUserName中文ABC"
    pieces = [text[first:end] for _, (first, end) in splitter.pre_tokenize_str(text)]
    assert pieces == ["中文", "get", "User", "Name", "中文", "ABC"]


def test_names_of_one_split_split_alike() -> None:
    assert {name for alike in ALIKE.items() for name in (alike[0], *alike[1])} == set(PRE_TOKENIZERS)
    for pre, others in ALIKE.items():
        assert all(PRE_TOKENIZERS[other].steps == PRE_TOKENIZERS[pre].steps for other in others)


def test_deepseek_llm_takes_letters_apart_where_its_marks_have_them() -> None:
    splitter = build(ggml__pre="deepseek-llm").pre_tokenizer
    assert splitter is not None
    # Its marks go from a colon to a tilde, and what is in words of ASCII alone is whole before. Georgian is apart.
    pieces = [text for text, _ in splitter.pre_tokenize_str(" ete \u00e9te \u10d0\u10d1 end")]
    assert [len(piece) for piece in pieces] == [4, 3, 2, 1, 6, 4]


@pytest.mark.parametrize("pre", ["gpt-4o", "tekken"])
def test_newer_vocabularies_split_where_capitals_begin_a_word(pre: str) -> None:
    splitter = build(ggml__pre=pre).pre_tokenizer
    assert splitter is not None
    pieces = [piece for piece, _ in splitter.pre_tokenize_str("iPhone HTTPServer a/b/\n")]
    assert pieces == ["i", "Phone", "ĠHTTPServer", "Ġa", "/b", "/Ċ"]


def test_some_compose_characters_first() -> None:
    for pre in PRE_TOKENIZERS:
        normalizer = build(ggml__pre=pre).normalizer
        assert (normalizer.normalize_str("e\u0301") if normalizer else "e\u0301") == (
            "\u00e9" if pre in COMPOSING else "e\u0301"
        )


def test_some_take_a_whole_word_of_the_vocabulary_without_merges() -> None:
    for pre in PRE_TOKENIZERS:
        # "12" has a token; without its merge only a model that ignores merges finds it.
        ids = build(ggml__pre=pre, ggml__merges=MERGES[:-1]).encode("12").ids
        assert (ids == [261]) == (pre in (*LLAMA3, "smaug-bpe", "minicpm5", "glm4", "glm5", "kimi-k2"))
    assert all(PRE_TOKENIZERS[pre].ignore_merges for pre in ("tekken", "youtu"))  # which take digits apart


TOKENS: list[str] = small_metadata()["tokenizer.ggml.tokens"]
TYPES: list[int] = small_metadata()["tokenizer.ggml.token_type"]
BROKEN = {
    "sentencepiece without scores": ({"ggml__model": "llama"}, "tokenizer.ggml.scores is missing or no array of float"),
    "no model": ({"ggml__model": None}, "tokenizer.ggml.model is None; only 'gpt2', 'gemma4', 'llama', 't5' can be"),
    "another split": (
        {"ggml__pre": "chameleon"},
        "tokenizer.ggml.pre is 'chameleon'; supported: gpt-2, .*llama-bpe, .*smollm",
    ),
    "no split": ({"ggml__pre": None}, "tokenizer.ggml.pre is None"),
    "a list for a split": ({"ggml__pre": ["gpt-2"]}, r"tokenizer.ggml.pre is \['gpt-2'\]"),
    "no tokens": ({"ggml__tokens": None}, "tokenizer.ggml.tokens is missing or no array of str"),
    "no types": ({"ggml__token_type": None}, "tokenizer.ggml.token_type is missing or no array of int"),
    "no merges": ({"ggml__merges": [1]}, "tokenizer.ggml.merges is missing or no array of str"),
    "fewer types": ({"ggml__token_type": [1]}, "tokenizer.ggml.token_type has 1 entries for 267 tokens"),
    "a byte token": ({"ggml__token_type": [6, *TYPES[1:]]}, "Token '!' has type 6, which byte-level BPE does not have"),
    "a token twice": ({"ggml__tokens": ["he", *TOKENS[1:]]}, "Tokens 0 and 256 of tokenizer.ggml.tokens are both 'he'"),
    "a merge of three": ({"ggml__merges": ["h e l"]}, "Merge 0 of tokenizer.ggml.merges, 'h e l', does not join two"),
    "a merge of one": ({"ggml__merges": ["he"]}, "Merge 0 of tokenizer.ggml.merges, 'he', does not join two"),
    "a merge into nothing": ({"ggml__merges": ["h e", "e h"]}, "Merge 1 of tokenizer.ggml.merges, 'e h', does not"),
    "a merge of nothing": ({"ggml__merges": ["he x y"]}, "Merge 0 of tokenizer.ggml.merges"),
    "an id past the end": ({"ggml__eos_token_id": 267}, "tokenizer.ggml.eos_token_id is 267, which is no token"),
    "an unused id": ({"ggml__padding_token_id": 265}, "tokenizer.ggml.padding_token_id is 265, which is no token"),
    "an id in words": ({"ggml__bos_token_id": "1"}, "tokenizer.ggml.bos_token_id is '1', which is no token"),
    "a flag in words": ({"ggml__add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token is 'yes'; it must be a boolean"),
    "nothing to add": (
        {"ggml__add_bos_token": True, "ggml__bos_token_id": None},
        "tokenizer.ggml.add_bos_token is set, but there is no tokenizer.ggml.bos_token_id",
    ),
    "a template that is no text": ({"chat_template": 7}, "tokenizer.chat_template is 7; it must be a string"),
    "one with a name that is none": ({"chat_template__a": 7}, "tokenizer.chat_template.a is 7; it must be a string"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_metadata_that_makes_no_tokenizer_is_an_error_that_names_the_key(case: str) -> None:
    changes, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message):
        tokenizer_files(small_metadata(**changes))


@pytest.fixture(scope="module")
def real_metadata(smollm2_gguf: Path) -> dict[str, Any]:
    return dict(GGUFFile.open(smollm2_gguf).metadata)


@pytest.mark.real_model
def test_the_real_tokenizer_encodes_as_llama_cpp_does(real_metadata: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_files(real_metadata)["tokenizer.json"])
    for row in CORPUS:
        assert tokenizer.encode(row["text"]).ids == row["ids"], row["text"]


def write_first_tokens(metadata: dict[str, Any], count: int, path: Path) -> dict[str, Any]:
    """Write a file with the first tokens and what merges into them, and return what is in it."""
    cut = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    tokens = cut["tokenizer.ggml.tokens"] = list(cut["tokenizer.ggml.tokens"])[:count]
    cut["tokenizer.ggml.token_type"] = list(cut["tokenizer.ggml.token_type"])[:count]
    known, merges = set(tokens), cut["tokenizer.ggml.merges"]
    cut["tokenizer.ggml.merges"] = [
        merge for merge in merges if known.issuperset((*merge.split(), merge.replace(" ", "")))
    ]
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in cut.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return cut


@pytest.mark.real_model
def test_the_real_tokenizer_is_that_of_transformers(real_metadata: dict[str, Any], tmp_path: Path) -> None:
    metadata = write_first_tokens(real_metadata, 5000, tmp_path / "cut.gguf")  # transformers takes 7 seconds for all
    expected = AutoTokenizer.from_pretrained(tmp_path, gguf_file="cut.gguf")
    # transformers takes GPT-2's splitting for every GGUF file of this kind; SmolLM2's own tokenizer.json splits digits.
    expected.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found = save(metadata, tmp_path)
    for row in CORPUS:
        ids = found(row["text"])["input_ids"]
        assert ids == expected(row["text"])["input_ids"], row["text"]
        assert found.decode(ids) == expected.decode(ids)
        assert found.decode(ids, skip_special_tokens=True) == expected.decode(ids, skip_special_tokens=True)
    assert found.get_vocab() == expected.get_vocab()
    for role in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(found, role) == getattr(expected, role)
    conversation = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}]
    for add_generation_prompt in (False, True):
        prompts = [
            tokenizer.apply_chat_template(conversation, add_generation_prompt=add_generation_prompt, tokenize=False)
            for tokenizer in (found, expected)
        ]
        assert prompts[0] == prompts[1]

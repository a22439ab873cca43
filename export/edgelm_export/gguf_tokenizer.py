"""The tokenizer of a GGUF file: tokenizer.json and its companions, rebuilt from the metadata.

A GGUF file has the vocabulary, the merges and the token types, and only the name of the rest: how text is split before
the merges apply. The rows of PRE_TOKENIZERS are what the models of that name have in their tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgelm.errors import CheckpointError

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # enum llama_token_type in llama.h

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """What a byte-level tokenizer does before its merges: the parts of tokenizer.json that a GGUF file only names.

    `add_bos` holds where the metadata has no `tokenizer.ggml.add_bos_token`.
    """

    steps: tuple[Mapping[str, Any], ...]
    normalizer: str | None = None
    ignore_merges: bool = False
    add_bos: bool = False


def _byte_level(*, use_regex: bool) -> Mapping[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(regex: str) -> Mapping[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


_DIGITS = {"type": "Digits", "individual_digits": True}
_LLAMA3 = PreTokenizer(steps=(_split(_LLAMA3_SPLIT), _byte_level(use_regex=False)), ignore_merges=True, add_bos=True)

# tokenizer.ggml.pre -> what it stands for.
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(steps=(_byte_level(use_regex=True),)),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": PreTokenizer(steps=(_split(_QWEN2_SPLIT), _byte_level(use_regex=False)), normalizer="NFC"),
    "smollm": PreTokenizer(steps=(_DIGITS, _byte_level(use_regex=True))),
}


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Rebuild tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja: name -> content.

    Token ids are those of the file. transformers and tokenizers read the result. Ids that the file marks as unused
    have no token in it.

    Raises:
        CheckpointError: the tokenizer is no byte-level BPE, splits text in a way that is not in PRE_TOKENIZERS, or
            its metadata is incomplete or contradicts itself.
    """
    pre_tokenizer = _pre_tokenizer(metadata)
    tokens: list[str] = _list(metadata, "tokenizer.ggml.tokens", str)
    types = _token_types(metadata, tokens)
    vocabulary = _vocabulary(tokens, types)
    special = _special_tokens(metadata, tokens, vocabulary)
    add_bos = _flag(metadata, "tokenizer.ggml.add_bos_token", default=pre_tokenizer.add_bos)
    add_eos = _flag(metadata, "tokenizer.ggml.add_eos_token", default=False)
    before = [_required(special, "bos")] if add_bos else []
    after = [_required(special, "eos")] if add_eos else []
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": {"type": pre_tokenizer.normalizer} if pre_tokenizer.normalizer else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer.steps},
        "post_processor": _post_processor(before, after, vocabulary) if before or after else None,
        "decoder": _byte_level(use_regex=True),
        "model": _bpe(vocabulary, _merges(metadata, vocabulary), ignore_merges=pre_tokenizer.ignore_merges),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in special.items()},
    }
    files = {
        "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False) + "\n",
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
    }
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise CheckpointError(f"tokenizer.chat_template is {template!r}; it must be a string.")
        files["chat_template.jinja"] = template
    return files


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    way_out = "Import the model's Hugging Face folder instead."
    if model != "gpt2":
        raise CheckpointError(
            f"tokenizer.ggml.model is {model!r}; only 'gpt2' (byte-level BPE) can be rebuilt. {way_out}"
        )
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise CheckpointError(f"tokenizer.ggml.pre is {pre!r}; supported: {', '.join(PRE_TOKENIZERS)}. {way_out}")
    return PRE_TOKENIZERS[pre]


def _list(metadata: Mapping[str, Any], key: str, element: type) -> list[Any]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(type(value) is element for value in values):
        raise CheckpointError(f"{key} is missing or no array of {element.__name__}: the tokenizer cannot be rebuilt.")
    return values


def _flag(metadata: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} is {value!r}; it must be a boolean.")
    return value


def _token_types(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    types: list[int] = _list(metadata, "tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens.")
    for token, kind in zip(tokens, types, strict=True):
        if kind not in (_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED):
            raise CheckpointError(f"Token {token!r} has type {kind}, which byte-level BPE does not have.")
    return types


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == _UNUSED:
            continue
        if token in vocabulary:
            raise CheckpointError(
                f"Tokens {vocabulary[token]} and {index} of tokenizer.ggml.tokens are both {token!r}."
            )
        vocabulary[token] = index
    return vocabulary


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    """List the tokens that are found in the text as they are, before it is split."""
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _merges(metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[str]:
    # tokenizers ends the process, or panics, on a merge of tokens that are not there.
    merges: list[str] = _list(metadata, "tokenizer.ggml.merges", str)
    for index, merge in enumerate(merges):
        parts = merge.split(" ")
        if len(parts) != 2 or not all(part in vocabulary for part in (*parts, "".join(parts))):
            raise CheckpointError(
                f"Merge {index} of tokenizer.ggml.merges, {merge!r}, does not join two tokens to one."
            )
    return merges


def _special_tokens(metadata: Mapping[str, Any], tokens: list[str], vocabulary: Mapping[str, int]) -> dict[str, str]:
    """Look up the tokens that have a role: role -> token."""
    special = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        key = f"tokenizer.ggml.{name}_token_id"
        index = metadata.get(key)
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < len(tokens) or tokens[index] not in vocabulary:
            raise CheckpointError(f"{key} is {index!r}, which is no token of this vocabulary.")
        special[role] = tokens[index]
    return special


def _required(special: Mapping[str, str], role: str) -> str:
    if role not in special:
        raise CheckpointError(
            f"tokenizer.ggml.add_{role}_token is set, but there is no tokenizer.ggml.{role}_token_id."
        )
    return special[role]


def _bpe(vocabulary: Mapping[str, int], merges: list[str], *, ignore_merges: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocabulary,
        "merges": merges,
    }


def _post_processor(before: list[str], after: list[str], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
        pieces = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in before]
        pieces.append({"Sequence": {"id": sequence, "type_id": type_id}})
        return pieces + [{"SpecialToken": {"id": token, "type_id": type_id}} for token in after]

    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (*before, *after)
        },
    }

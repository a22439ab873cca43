"""The tokenizer of a GGUF file: tokenizer.json and its companions, rebuilt from the metadata.

Of a byte-level BPE a GGUF file has the vocabulary, the merges and the token types, and only the name of the rest: how
text is split before the merges apply. Of a SentencePiece tokenizer it has all, and of Gemma 4's, whose merges go over
the characters of a whole text.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgelm.errors import CheckpointError
from edgelm.text.chat_template import template_of
from edgelm_export.gguf.file import GGUFStrings
from edgelm_export.gguf.token_ids import named_ends
from edgelm_export.tokenizers.byte_level_tokenizer import (
    PRE_TOKENIZERS,
    PreTokenizer,
    byte_level_json,
    joins_two_tokens,
)
from edgelm_export.tokenizers.character_bpe import character_bpe_json
from edgelm_export.tokenizers.sentencepiece_model import Kind, PieceType, SentencePieceModel
from edgelm_export.tokenizers.sentencepiece_tokenizer import sentencepiece_json, token_names
from edgelm_export.tokenizers.tokenizer_json import added_token, files_of, post_processor

_CHAT_TEMPLATE = "tokenizer.chat_template"
_PRE = "tokenizer.ggml.pre"
_OF_CHARACTERS = "sarvam-moe"  # a BPE as Gemma 4's, though its model is called "gpt2"
_ADDED = (PieceType.CONTROL, PieceType.USER_DEFINED)
# Phi-3's take the white space behind them, which no key says; llama.cpp knows it by the model's name.
_STRIPPING = "phi3"
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
_OF_BYTE_LEVEL = (PieceType.NORMAL, *_ADDED, PieceType.UNUSED)


@dataclass(frozen=True, kw_only=True)
class _Rebuilt:
    """A tokenizer before the tokens around its texts are known: which of them hold where the metadata is silent."""

    build: Callable[[list[str], list[str]], str]  # tokenizer.json, of the tokens before and behind each text
    names: Sequence[str | None]  # of the tokens; None for those that are unused
    add_bos: bool
    add_eos: bool = False


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Rebuild tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja: name -> content.

    Token ids are those of the file. transformers and tokenizers read the result. Ids that the file marks as unused
    have no token in it.

    Raises:
        CheckpointError: the tokenizer is neither byte-level BPE nor of SentencePiece, splits text in a way that is not
            in PRE_TOKENIZERS, or its metadata is incomplete or contradicts itself.
    """
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in _MODELS:
        listed = ", ".join(repr(name) for name in _MODELS)
        raise CheckpointError(f"tokenizer.ggml.model is {model!r:.80}; only {listed} can be rebuilt. {_WAY_OUT}")
    tokens: list[str] = _list(metadata, "tokenizer.ggml.tokens", str)
    rebuilt = _MODELS[model](metadata, tokens)
    special = _special_tokens(metadata, rebuilt.names)
    add_bos = _flag(metadata, "tokenizer.ggml.add_bos_token", default=rebuilt.add_bos)
    add_eos = _flag(metadata, "tokenizer.ggml.add_eos_token", default=rebuilt.add_eos)
    before = [_required(special, "bos")] if add_bos else []
    after = [_required(special, "eos")] if add_eos else []
    templates = _chat_templates(metadata)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": token for role, token in special.items()},
    }
    if templates.keys() - {"default"}:  # several, by name, stay listed as in a folder
        config["chat_template"] = [{"name": name, "template": template} for name, template in templates.items()]
    files = files_of(rebuilt.build(before, after), config)
    template = template_of(templates)
    if template is not None:
        files["chat_template.jinja"] = template
    return files


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by their names; the one that has none is the "default"."""
    templates = {}
    for key, template in metadata.items():
        if key != _CHAT_TEMPLATE and not key.startswith(f"{_CHAT_TEMPLATE}."):
            continue
        if not isinstance(template, str):
            raise CheckpointError(f"{key} is {template!r:.80}; it must be a string.")
        templates["default" if key == _CHAT_TEMPLATE else key.removeprefix(f"{_CHAT_TEMPLATE}.")] = template
    return templates


def _byte_level_bpe(metadata: Mapping[str, Any], tokens: list[str]) -> _Rebuilt:
    if metadata.get(_PRE) == _OF_CHARACTERS:
        return dataclasses.replace(_bpe_of_characters(metadata, tokens), add_bos=False)
    pre_tokenizer = _pre_tokenizer(metadata)
    types = _token_types(metadata, tokens, _OF_BYTE_LEVEL, "byte-level BPE")
    vocabulary = _vocabulary(tokens, types)

    def build(before: list[str], after: list[str]) -> str:
        return byte_level_json(
            pre_tokenizer,
            vocabulary,
            _merges(metadata, vocabulary),
            added=_added_tokens(tokens, types),
            around=post_processor(before, after, vocabulary),
        )

    return _Rebuilt(build=build, names=_names(tokens, types), add_bos=pre_tokenizer.add_bos)


def _bpe_of_characters(metadata: Mapping[str, Any], tokens: list[str]) -> _Rebuilt:
    types = _token_types(metadata, tokens, tuple(PieceType), "BPE of characters")
    vocabulary, names = _vocabulary(tokens, types), _names(tokens, types)

    def build(before: list[str], after: list[str]) -> str:
        return character_bpe_json(
            vocabulary,
            _merges(metadata, vocabulary),
            unknown=_special_tokens(metadata, names).get("unk"),
            added=_added_tokens(tokens, types),
            around=post_processor(before, after, vocabulary),
        )

    return _Rebuilt(build=build, names=names, add_bos=True)


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], kind: Kind) -> _Rebuilt:
    types = _token_types(metadata, tokens, tuple(PieceType), "SentencePiece")
    scores = _list(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens.")
    model = SentencePieceModel(
        kind=kind,
        texts=tokens,
        scores=np.array(scores),
        types=bytes(_with_one_unknown(types, metadata.get("tokenizer.ggml.unknown_token_id"))),
        charsmap=_charsmap(metadata),
        add_dummy_prefix=_flag(metadata, "tokenizer.ggml.add_space_prefix", default=True),
        remove_extra_whitespaces=_flag(metadata, "tokenizer.ggml.remove_extra_whitespaces", default=False),
    )
    names, more = token_names(model), list[dict[str, Any]]()
    if metadata.get("general.architecture") == _STRIPPING:
        more = _added_tokens([name or "" for name in names], types, stripping=True)
    return _Rebuilt(
        build=lambda before, after: sentencepiece_json(model, before=before, after=after, more=more),
        names=names,
        add_bos=kind == "bpe",
        add_eos=kind == "unigram",
    )


def _with_one_unknown(types: list[int], unknown: object) -> list[int]:
    """Return the types with one token for the unknown; Phi-3's files have that type for places without a token."""
    if types.count(PieceType.UNKNOWN) < 2 or type(unknown) is not int or not 0 <= unknown < len(types):
        return types
    single: list[int] = [PieceType.UNUSED if type_ == PieceType.UNKNOWN else type_ for type_ in types]
    single[unknown] = PieceType.UNKNOWN
    return single


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    key = "tokenizer.ggml.precompiled_charsmap"
    try:
        return bytes(iter(metadata.get(key, b"")))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{key} is no array of bytes: the tokenizer cannot be rebuilt.") from error


# tokenizer.ggml.model -> how its tokenizer is rebuilt.
_MODELS: Mapping[str, Callable[[Mapping[str, Any], list[str]], _Rebuilt]] = {
    "gpt2": _byte_level_bpe,
    "gemma4": _bpe_of_characters,
    "llama": partial(_sentencepiece, kind="bpe"),
    "t5": partial(_sentencepiece, kind="unigram"),
}
_WAY_OUT = "Import the model's Hugging Face folder instead."


def _pre_tokenizer(metadata: Mapping[str, Any]) -> PreTokenizer:
    pre = metadata.get(_PRE)
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        known = ", ".join([*PRE_TOKENIZERS, _OF_CHARACTERS])
        raise CheckpointError(f"{_PRE} is {pre!r:.80}; supported: {known}. {_WAY_OUT}")
    return PRE_TOKENIZERS[pre]


def _list(metadata: Mapping[str, Any], key: str, element: type) -> list[Any]:
    values = metadata.get(key)
    values = list(values) if isinstance(values, (GGUFStrings, array)) else values
    if not isinstance(values, list) or not all(type(value) is element for value in values):
        raise CheckpointError(f"{key} is missing or no array of {element.__name__}: the tokenizer cannot be rebuilt.")
    return values


def _flag(metadata: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{key} is {value!r:.80}; it must be a boolean.")
    return value


def _token_types(metadata: Mapping[str, Any], tokens: list[str], allowed: Collection[int], kind: str) -> list[int]:
    types: list[int] = _list(metadata, "tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise CheckpointError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens.")
    for token, type_ in zip(tokens, types, strict=True):
        if type_ not in allowed:
            raise CheckpointError(f"Token {token!r:.80} has type {type_}, which {kind} does not have.")
    # Else a user's text would end a turn, or nothing would.
    ends = {index for index in named_ends(metadata)[0] if types[index] in (PieceType.NORMAL, PieceType.USER_DEFINED)}
    return [PieceType.CONTROL if index in ends else type_ for index, type_ in enumerate(types)]


def _names(tokens: list[str], types: list[int]) -> list[str | None]:
    """Return the tokens; None for those that are unused."""
    unused = PieceType.UNUSED
    return [None if type_ == unused else token for token, type_ in zip(tokens, types, strict=True)]


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for index, token in enumerate(_names(tokens, types)):
        if token is None:
            continue
        if token in vocabulary:
            raise CheckpointError(
                f"Tokens {vocabulary[token]} and {index} of tokenizer.ggml.tokens are both {token!r:.80}."
            )
        vocabulary[token] = index
    return vocabulary


def _added_tokens(tokens: list[str], types: list[int], *, stripping: bool = False) -> list[dict[str, Any]]:
    """List the tokens that are found in the text as they are, before it is split; stripping: as Phi-3's."""
    return [
        added_token(
            index,
            token,
            special=type_ == PieceType.CONTROL,
            like={"rstrip": stripping and token not in _NOT_STRIPPING},
        )
        for index, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in _ADDED
    ]


def _merges(metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[str]:
    merges: list[str] = _list(metadata, "tokenizer.ggml.merges", str)
    for index, merge in enumerate(merges):
        if not joins_two_tokens(merge, vocabulary):
            raise CheckpointError(
                f"Merge {index} of tokenizer.ggml.merges, {merge!r:.80}, does not join two tokens to one."
            )
    return merges


def _special_tokens(metadata: Mapping[str, Any], names: Sequence[str | None]) -> dict[str, str]:
    """Look up the tokens that have a role: role -> token."""
    special = {}
    for role, word in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        key = f"tokenizer.ggml.{word}_token_id"
        index = metadata.get(key)
        if index is None:
            continue
        name = names[index] if type(index) is int and 0 <= index < len(names) else None
        if name is None:
            raise CheckpointError(f"{key} is {index!r:.80}, which is no token of this vocabulary.")
        special[role] = name
    return special


def _required(special: Mapping[str, str], role: str) -> str:
    if role not in special:
        raise CheckpointError(
            f"tokenizer.ggml.add_{role}_token is set, but there is no tokenizer.ggml.{role}_token_id."
        )
    return special[role]

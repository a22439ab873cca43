"""The tokenizer of a Hugging Face folder that has a vocabulary and merges, and no tokenizer.json.

Those files do not say how text is split before the merges apply, nor which tokens have a role where the settings are
silent: transformers has that in the class that reads them. The rows of CLASSES are those classes.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.byte_level_tokenizer import (
    PRE_TOKENIZERS,
    PreTokenizer,
    byte_level_json,
    joins_two_tokens,
)
from edgelm_export.tokenizers.tokenizer_json import (
    ADDED_TOKENS,
    TOKENIZER_CONFIG,
    added_token,
    class_name,
    files_of,
    listed_tokens,
    post_processor,
)

BYTE_LEVEL_FILES = VOCABULARY, MERGES = "vocab.json", "merges.txt"
SPECIAL_TOKENS, MODEL_CONFIG = "special_tokens_map.json", "config.json"
SETTINGS_FILES = (TOKENIZER_CONFIG, ADDED_TOKENS, SPECIAL_TOKENS, MODEL_CONFIG)  # what may stand beside them
_IDS = 10**8
_MAX_MERGES = 1 << 18  # Qwen2's has 151,387

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE = ("extra_special_tokens", "additional_special_tokens")
# Settings of the class that read the files, or code of the author's.
_OF_ANOTHER_CLASS = ("added_tokens_decoder", "add_prefix_space", "auto_map", "errors")


@dataclass(frozen=True, kw_only=True)
class TokenizerClass:
    """What a tokenizer class of transformers knows that its files do not say.

    roles: the tokens where the settings name none. around: the roles of those that stand around each text, whatever the
    settings say. before: tokens without a role that stand before each text.
    """

    pre_tokenizer: PreTokenizer
    roles: Mapping[str, str]
    around: tuple[str, str] | None = None
    before: tuple[str, ...] = ()


_GPT2 = TokenizerClass(pre_tokenizer=PRE_TOKENIZERS["gpt-2"], roles=dict.fromkeys(_ROLES[:3], "<|endoftext|>"))
_BART = TokenizerClass(
    pre_tokenizer=PRE_TOKENIZERS["gpt-2"],
    roles=dict(zip(_ROLES, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True)),
    around=("cls_token", "sep_token"),
)
CLASSES: Mapping[str, TokenizerClass] = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": TokenizerClass(
        pre_tokenizer=replace(PRE_TOKENIZERS["gpt-2"], normalizer="NFC"),
        roles={**_GPT2.roles, "pad_token": "<|padding|>"},
    ),
    "Qwen2Tokenizer": TokenizerClass(
        pre_tokenizer=PRE_TOKENIZERS["qwen2"],
        roles=dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    ),
    "BartTokenizer": _BART,
    "MvpTokenizer": _BART,
    "RobertaTokenizer": _BART,
}
_CLASS_OF_MODEL = {
    "bart": "BartTokenizer",
    "mvp": "MvpTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "phi": "CodeGenTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
}


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What the folder says of its tokenizer beside the vocabulary and the merges.

    older: what special_tokens_map.json says, where tokenizer_config.json does not say it all, as it does since
    transformers 4.34.
    """

    folder: Path
    config: Mapping[str, Any]
    older: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        return self.older.get(key, self.config.get(key, default))

    def all(self) -> dict[str, Any]:
        return {**self.config, **self.older}

    def where(self, key: str) -> str:
        return f"{self.folder / (SPECIAL_TOKENS if key in self.older else TOKENIZER_CONFIG)}: {key}"

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self.where(key)} is {reprlib.repr(value)}; it must be true or false.")
        return value is True

    def token(self, key: str, value: Any) -> Mapping[str, Any]:
        """Read a token: a text, or an object with one as its content."""
        token = {"content": value} if isinstance(value, str) else value
        if not isinstance(token, Mapping) or not isinstance(token.get("content"), str):
            raise CheckpointError(f"{self.where(key)} is {reprlib.repr(value)}; it must be a token.")
        return token


def tokenizer_class(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> TokenizerClass:
    """Find the class of a folder's tokenizer.

    settings: the objects in those of SETTINGS_FILES that there are, by name.

    Raises:
        CheckpointError: it is another one than those of CLASSES.
    """
    config, model = settings.get(TOKENIZER_CONFIG, {}), settings.get(MODEL_CONFIG, {})
    name = class_name(config, model, _CLASS_OF_MODEL)
    found = CLASSES.get(name.removesuffix("Fast")) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"{folder} has no tokenizer.json, and the tokenizer_class in {TOKENIZER_CONFIG} is {reprlib.repr(name)}. "
            f"Of {VOCABULARY} and {MERGES} it can be built for {', '.join(CLASSES)}. Make it with transformers: "
            f'AutoTokenizer.from_pretrained("{folder}").save_pretrained("{folder}")'
        )
    return found


def byte_level_files(
    class_: TokenizerClass,
    folder: Path,
    vocabulary: Mapping[str, Any],
    merges: str | Sequence[str],
    files: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    Token ids are those that the files say. A token that has a role, and no id anywhere, gets the next one.

    vocabulary: vocab.json's, token -> id. merges: the content of merges.txt, or what it would list. files: the objects
    in those of SETTINGS_FILES that there are, by name.

    Raises:
        CheckpointError: a file is broken, or contradicts another one.
    """
    config = files.get(TOKENIZER_CONFIG, {})
    says_all = isinstance(config.get("added_tokens_decoder"), Mapping)
    settings = _Settings(folder=folder, config=config, older={} if says_all else files.get(SPECIAL_TOKENS, {}))
    named, more = _named_tokens(class_, settings), _more_tokens(settings)
    base = checked_ids(vocabulary, folder / VOCABULARY)
    listed = sorted(listed_tokens(config, files.get(ADDED_TOKENS, {}), folder), key=itemgetter(0))
    ids = _with_listed(base, listed, folder / (TOKENIZER_CONFIG if says_all else ADDED_TOKENS))
    added = _added_tokens(ids, [token for _, token in listed], named.values(), more)
    before, after = _around(class_, settings, named)
    if missing := [token for token in class_.before if token not in ids]:
        raise CheckpointError(
            f"{folder}: {missing[0]!r}, which stands before each text, is no token of {TOKENIZER_CONFIG}. Download it "
            "again."
        )
    prefix_space = settings.flag("add_prefix_space")
    tokenizer = byte_level_json(
        class_.pre_tokenizer.with_prefix_space() if prefix_space else class_.pre_tokenizer,
        ids,
        _merges(merges, base, folder / MERGES) if isinstance(merges, str) else merges,
        added=added,
        around=post_processor([*class_.before, *before], after, ids),
    )
    said = settings.all()
    written = {
        **{key: value for key, value in said.items() if key not in _OF_ANOTHER_CLASS},
        **{key: [token["content"] for token in more] for key in _MORE if isinstance(said.get(key), list)},
        **{key: token["content"] for key, token in named.items() if key in said or key in _ROLES},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
    }
    return files_of(tokenizer, written)


def _named_tokens(class_: TokenizerClass, settings: _Settings) -> dict[str, Mapping[str, Any]]:
    """Collect the tokens that have a role, by its name: the usual ones, and a model's own."""
    values = {role: settings.get(role, class_.roles.get(role)) for role in _ROLES}
    for key, value in settings.all().items():
        if key.endswith("_token") and key not in values and isinstance(value, (str, Mapping)):
            values[key] = value
    own = settings.get(_MORE[0])
    values |= own if isinstance(own, Mapping) else {}
    tokens = {key: settings.token(key, value) for key, value in values.items() if value is not None}
    return {key: token for key, token in tokens.items() if token["content"]}


def _more_tokens(settings: _Settings) -> list[Mapping[str, Any]]:
    """Collect the control tokens that have no role."""
    for key in _MORE:
        values = settings.get(key)
        if isinstance(values, list) and values:
            tokens = [settings.token(key, value) for value in values]
            return [token for token in tokens if token["content"]]
    return []


def checked_ids(vocabulary: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Return a vocabulary's ids.

    Raises:
        CheckpointError: one is no id, or another token has it too.
    """
    by_id: dict[int, str] = {}
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < _IDS:
            raise CheckpointError(
                f"{path}: the token {token!r:.80} has the id {reprlib.repr(index)}; ids are whole numbers below {_IDS}."
            )
        if by_id.setdefault(index, token) is not token:
            raise CheckpointError(
                f"{path}: the tokens {by_id[index]!r:.80} and {token!r:.80} have the same id, {index}."
            )
    return {token: index for index, token in by_id.items()}


def _with_listed(
    base: Mapping[str, int], listed: Sequence[tuple[int, Mapping[str, Any]]], path: Path
) -> dict[str, int]:
    """Give the tokens that are listed beside the vocabulary their ids."""
    ids, by_id = dict(base), {index: token for token, index in base.items()}
    for index, token in listed:
        content = token["content"]
        if by_id.setdefault(index, content) != content:
            raise CheckpointError(f"{path}: the id {index} is both {by_id[index]!r:.80} and the added {content!r:.80}.")
        if ids.setdefault(content, index) != index:
            raise CheckpointError(f"{path}: the added token {content!r:.80} has the ids {ids[content]} and {index}.")
    return ids


def _added_tokens(
    ids: dict[str, int],
    listed: Sequence[Mapping[str, Any]],
    named: Collection[Mapping[str, Any]],
    more: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Describe the tokens that are found in the text as they are; give those that have no id yet the next ones."""
    control = {token["content"] for token in named}
    # added_tokens.json does not say which of its tokens are for control.
    special = control | {token["content"] for token in more}
    tokens = {token["content"]: {"special": token["content"] in special, **token} for token in listed}
    following = itertools.count(max(ids.values(), default=-1) + 1)
    for token in (*named, *more):
        content = token["content"]
        tokens.setdefault(content, {**token, "special": True})
        if content not in ids:
            ids[content] = next(following)
    added = []
    for content, token in tokens.items():
        is_special = token["special"] is True or content in control
        normalized = token.get("normalized", not is_special) is True
        added.append(added_token(ids[content], content, special=is_special, normalized=normalized, like=token))
    return sorted(added, key=itemgetter("id"))


def _merges(text: str, vocabulary: Mapping[str, int], path: Path) -> list[str]:
    """Read the lines of merges.txt; the first may be its version."""
    count = text.count("\n")
    if count > _MAX_MERGES:
        raise CheckpointError(f"{path} has {count} lines; at most {_MAX_MERGES} are read.")
    merges: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        merge = line.removesuffix("\r")
        if not merge or (number == 1 and merge.startswith("#version")):
            continue
        if not joins_two_tokens(merge, vocabulary):
            raise CheckpointError(f"{path}: line {number}, {merge!r:.80}, does not join two tokens to one.")
        if merges.setdefault(merge, number) != number:
            raise CheckpointError(f"{path}: line {number}, {merge!r:.80}, is line {merges[merge]} again.")
    return list(merges)


def _around(
    class_: TokenizerClass, settings: _Settings, named: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """Find the tokens before and behind each text."""
    asked = {role: settings.flag(f"add_{role}") for role in ("bos_token", "eos_token")}
    roles = class_.around or tuple(asked)
    before, after = ([named[role]["content"]] if role in named and asked.get(role, True) else [] for role in roles)
    return before, after

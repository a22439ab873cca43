"""The tokenizer of a folder of Mistral's that has tekken.json, and no tokenizer.json.

It is a vocabulary for tiktoken (tiktoken_folder.py) that says itself how text is split, with the control tokens before
the others: they have the first ids, and a token's id is its rank behind them. Of the vocabulary only its beginning
counts, as much as `default_vocab_size` leaves room for. Source: mistral_common.tokens.tokenizers.tekken.
"""

from __future__ import annotations

import base64
import binascii
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.byte_level_folder import TokenizerClass
from edgelm_export.tokenizers.byte_level_tokenizer import PRE_TOKENIZERS, TEKKEN_SPLIT
from edgelm_export.tokenizers.tiktoken_folder import MAX_TOKEN_BYTES, MAX_TOKENS, ranked_files
from edgelm_export.tokenizers.tokenizer_json import TOKENIZER_CONFIG, listed_tokens

TEKKEN = "tekken.json"
NO_TEMPLATE = (
    "Mistral AI has it as code, in the package mistral-common, whose "
    'mistral_common.integrations.chat_templates.chat_templates.convert_tokenizer_to_chat_template("tekken.json") gives '
    "one. Put it into chat_template.jinja of the source's folder."
)
_MAX_CONTROL = 1 << 13  # 1,000 in each that was published
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# Files of these versions may list none, and have these.
_VERSIONS_WITHOUT_LIST = ("v1", "v2", "v3", "v7")
_CONTROL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def tekken_files(path: Path, model: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    A begin token stands before each text, unless the settings say otherwise (`add_bos_token`).

    path: of tekken.json. model: the object in it. files: the objects in those of byte_level_folder.SETTINGS_FILES that
    there are, by name.

    Raises:
        CheckpointError: it splits text in a way that is not known, is broken, or contradicts the settings.
    """
    config = model.get("config")
    config = config if isinstance(config, Mapping) else {}
    if config.get("pattern") != TEKKEN_SPLIT:
        raise CheckpointError(
            f"{path}: config.pattern is {reprlib.repr(config.get('pattern'))}, which is not how Mistral Nemo's "
            "splits text; no other is read. Take a GGUF file of the model, or a folder with tokenizer.json."
        )
    count = _number(path, config, "default_num_special_tokens", 0, _MAX_CONTROL)
    size = _number(path, config, "default_vocab_size", count, MAX_TOKENS)
    named = _control_tokens(path, model.get("special_tokens"), config.get("version"), count)
    ranks = _ranks(path, model.get("vocab"), size - count)
    settings = files.get(TOKENIZER_CONFIG, {})
    control = {str(id_): f"<SPECIAL_{id_}>" for id_ in range(count)} | {str(id_): text for id_, text in named.items()}
    known: dict[str, Any] = {id_: {"content": text, "special": True} for id_, text in control.items()}
    for id_, token in listed_tokens(settings, {}, path.parent):
        if named.get(id_, token["content"]) != token["content"]:
            raise CheckpointError(
                f"{path.parent / TOKENIZER_CONFIG}: added_tokens_decoder has {token['content']!r:.80} as the id {id_}, "
                f"which is {named[id_]!r:.80} in {path.name}. Download both again."
            )
        known[str(id_)] = token
    roles = {role: token for role, token in _ROLES.items() if token in named.values()}
    return ranked_files(
        TokenizerClass(pre_tokenizer=PRE_TOKENIZERS["tekken"], roles=roles),
        path,
        {token: rank + count for token, rank in ranks.items()},
        {**files, TOKENIZER_CONFIG: {"add_bos_token": True, **settings, "added_tokens_decoder": known}},
    )


def _number(path: Path, config: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = config.get(key)
    if type(value) is not int or not least <= value <= most:
        raise CheckpointError(
            f"{path}: config.{key} is {reprlib.repr(value)}; it must be a whole number from {least} to {most}."
        )
    return value


def _control_tokens(path: Path, listed: Any, version: Any, count: int) -> dict[int, str]:
    """Read the control tokens that have names: id -> name."""
    if listed is None and version in _VERSIONS_WITHOUT_LIST:
        listed = [{"rank": rank, "token_str": text} for rank, text in enumerate(_CONTROL[:count])]
    if not isinstance(listed, list):
        raise CheckpointError(
            f"{path}: special_tokens is {reprlib.repr(listed)}; it must be a list, which may be missing in "
            f"{', '.join(_VERSIONS_WITHOUT_LIST)} alone (config.version is {reprlib.repr(version)})."
        )
    named: dict[int, str] = {}
    for token in listed:
        rank, text = (token.get("rank"), token.get("token_str")) if isinstance(token, Mapping) else (None, None)
        if type(rank) is not int or not 0 <= rank < count or rank in named or not isinstance(text, str) or not text:
            raise CheckpointError(
                f"{path}: of special_tokens {reprlib.repr(token)} has no token_str, or no rank of its own below "
                f"config.default_num_special_tokens ({count})."
            )
        named[rank] = text
    return named


def _ranks(path: Path, vocabulary: Any, count: int) -> dict[bytes, int]:
    """Read the tokens that count, and their ranks."""
    if not isinstance(vocabulary, list) or len(vocabulary) < count:
        length = len(vocabulary) if isinstance(vocabulary, list) else "no"
        raise CheckpointError(
            f"{path} has {length} tokens in vocab; config.default_vocab_size and config.default_num_special_tokens "
            f"say at least {count}. Download it again."
        )
    ranks: dict[bytes, int] = {}
    for rank, token in enumerate(vocabulary[:count]):
        try:
            content = base64.b64decode(token["token_bytes"], validate=True) if token["rank"] == rank else b""
        except (KeyError, TypeError, ValueError, binascii.Error):
            content = b""
        if not 0 < len(content) <= MAX_TOKEN_BYTES:
            raise CheckpointError(
                f"{path}: {reprlib.repr(token)} in vocab is not the token of the rank {rank}, with up to "
                f"{MAX_TOKEN_BYTES} bytes in base64 as its token_bytes. Download it again."
            )
        if ranks.setdefault(content, rank) != rank:
            raise CheckpointError(f"{path}: {content!r:.80} has the ranks {ranks[content]} and {rank} in vocab.")
    return ranks

"""The tokenizer of a folder that has a vocabulary in tiktoken's form, and no tokenizer.json.

Such a file has one token a line, its bytes in base64 and its rank, which is its id. tiktoken joins whichever neighbours
make the token of the lowest rank, and takes a piece of text that is a token whole. How text is split into pieces, and
what control tokens there are, says the author's code, which is not run: the rows of TIKTOKEN_CLASSES are those classes.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm.files import regular_file
from edgelm_export.tokenizers.byte_level_folder import TokenizerClass, byte_level_files
from edgelm_export.tokenizers.byte_level_tokenizer import PRE_TOKENIZERS, byte_letters
from edgelm_export.tokenizers.tokenizer_json import TOKENIZER_CONFIG

TIKTOKEN_FILES = ("tiktoken.model", "*.tiktoken")
_MAX_FILE_BYTES = 8 << 20  # Kimi K2's has 2.8 MB
MAX_TOKENS, MAX_TOKEN_BYTES = 1 << 18, 512  # 163,584 in Kimi K2's
_MAX_BYTES = 4 << 20  # of all tokens together, each of which is looked at in all its halves
_MAX_MERGES = 1 << 19  # 294,166 in Qwen's, of 151,643 tokens
_EXTRA = tuple(f"<|extra_{number}|>" for number in range(205))
_OF_GLM4 = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TiktokenClass:
    """What a class of tokenizers knows. control: the tokens behind the vocabulary's, where the settings name no other;
    `{id}` in one stands for its id.
    """

    like: TokenizerClass
    control: tuple[str, ...]


def _class(pre_tokenizer: str, normalizer: str | None, control: tuple[str, ...], **around: Any) -> TiktokenClass:
    splitting = replace(PRE_TOKENIZERS[pre_tokenizer], normalizer=normalizer, ignore_merges=True)
    return TiktokenClass(like=TokenizerClass(pre_tokenizer=splitting, roles={}, **around), control=control)


TIKTOKEN_CLASSES: Mapping[str, TiktokenClass] = {
    # Moonlight's and Kimi's.
    "TikTokenTokenizer": _class("kimi-k2", None, ("<|reserved_token_{id}|>",) * 256),
    # Hunyuan-A13B's.
    "HYTokenizer": _class(
        "hunyuan", "NFC", ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", *_EXTRA)
    ),
    # GLM-4's, as its author's own code has it.
    "ChatGLM4Tokenizer": _class("glm4", None, _OF_GLM4, before=("[gMASK]", "<sop>")),
    # Qwen 1's.
    "QWenTokenizer": _class("qwen2", "NFC", ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *_EXTRA)),
}


def tiktoken_file(folder: Path) -> str | None:
    """Return the name of the folder's vocabulary in tiktoken's form."""
    found = sorted(path.name for pattern in TIKTOKEN_FILES for path in folder.glob(pattern))
    return found[0] if found else None


def tiktoken_files(path: Path, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    path: the vocabulary. files: the objects in those of byte_level_folder.SETTINGS_FILES that there are, by name.

    Raises:
        CheckpointError: the class is another one than those of TIKTOKEN_CLASSES, or a file is broken.
    """
    config = files.get(TOKENIZER_CONFIG, {})
    name = config.get("tokenizer_class")
    found = TIKTOKEN_CLASSES.get(name) if isinstance(name, str) else None
    if found is None:
        raise CheckpointError(
            f"{path.parent} has no tokenizer.json, and the tokenizer_class in {TOKENIZER_CONFIG} is "
            f"{reprlib.repr(name)}. Of {path.name} it can be built for {', '.join(TIKTOKEN_CLASSES)}. Take a GGUF file "
            "of the model, or a folder with tokenizer.json."
        )
    ranks = _ranks(path)
    listed = config.get("added_tokens_decoder")
    own = listed if isinstance(listed, Mapping) else {}
    contents = [token.get("content") for token in own.values() if isinstance(token, Mapping)]
    taken = {content for content in contents if isinstance(content, str)}  # of others ranked_files tells
    first = max(ranks.values(), default=-1) + 1
    behind = {str(id_): text.format(id=id_) for id_, text in enumerate(found.control, first)}
    known = {id_: {"content": text, "special": True} for id_, text in behind.items() if text not in taken}
    settings = {**config, "added_tokens_decoder": {**known, **own}}
    return ranked_files(found.like, path, ranks, {**files, TOKENIZER_CONFIG: settings})


def ranked_files(
    class_: TokenizerClass, path: Path, ranks: Mapping[bytes, int], files: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json of tokens and their ranks, which are their ids.

    path: where they stand. files: the folder's settings, as `tiktoken_files` takes them, with all control tokens.

    Raises:
        CheckpointError: the tokens are no vocabulary for tiktoken, or join in too many ways.
    """
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(set(ranks.values())) < len(ranks):
        told = f"has no token for the byte {missing[0]}" if missing else "gives two tokens one rank"
        raise CheckpointError(f"{path} {told}. Download it again.")
    if sum(map(len, ranks)) > _MAX_BYTES:
        raise CheckpointError(f"{path}: its tokens have more than {_MAX_BYTES} bytes; so many are not read.")
    letters = {token: byte_letters(token) for token in ranks}
    vocabulary = {letters[token]: rank for token, rank in ranks.items()}
    merges = [f"{letters[left]} {letters[right]}" for left, right in itertools.islice(_merges(ranks), _MAX_MERGES + 1)]
    if len(merges) > _MAX_MERGES:
        raise CheckpointError(
            f"{path}: more than {_MAX_MERGES} pairs of its tokens make a token; so many are not read."
        )
    return byte_level_files(class_, path.parent, vocabulary, merges, files)


def _ranks(path: Path) -> dict[bytes, int]:
    """Read the tokens and their ranks."""
    try:
        lines = regular_file.read_text(path, _MAX_FILE_BYTES).split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if len(lines) > MAX_TOKENS:
        raise CheckpointError(f"{path} has {len(lines)} lines; at most {MAX_TOKENS} are read.")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            content, index = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            content, index = b"", -1
        if not (0 < len(content) <= MAX_TOKEN_BYTES and 0 <= index < MAX_TOKENS):
            raise CheckpointError(
                f"{path}: line {number}, {line!r:.80}, is not a token of up to {MAX_TOKEN_BYTES} bytes in base64 and "
                f"its rank below {MAX_TOKENS}. Download it again."
            )
        if ranks.setdefault(content, index) != index:
            raise CheckpointError(f"{path}: line {number} gives {content!r:.80} a second rank, {index}.")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """List the pairs of tokens that make one, those of the lowest rank first."""
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:place], token[place:]) for place in range(1, len(token)))
        known = [(ranks[left], ranks[right], left, right) for left, right in pairs if left in ranks and right in ranks]
        yield from ((left, right) for _, _, left, right in sorted(known))

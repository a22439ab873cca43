"""The tokenizer of a BlenderbotSmall: BPE of small letters, whose pieces say that a word goes on, not where it begins.

transformers has no tokenizer.json of it. Its class writes `he@@ llo`; the merges of merges.txt, and of tokenizer.json,
`he llo</w>`. What the class puts between marks and words it puts into no text again: an answer has a space behind each
word, before a full stop too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.byte_level_folder import MERGES, MODEL_CONFIG, VOCABULARY, checked_ids
from edgelm_export.tokenizers.tokenizer_json import (
    ADDED_TOKENS,
    TOKENIZER_CONFIG,
    added_token,
    class_name,
    files_of,
    listed_tokens,
)

_CLASS = "BlenderbotSmallTokenizer"
_CLASS_OF_MODEL = {"blenderbot-small": _CLASS}
_ROLES = {"bos_token": "__start__", "eos_token": "__end__", "unk_token": "__unk__", "pad_token": "__null__"}
_GOES_ON, _END = "@@", "</w>"
_NEW_LINE = " __newln__ "  # for one that follows a word, but no apostrophe


def is_blenderbot_small(settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a folder's tokenizer is of that class; settings: the objects in its files, by name."""
    name = class_name(settings.get(TOKENIZER_CONFIG, {}), settings.get(MODEL_CONFIG, {}), _CLASS_OF_MODEL)
    return str(name).removesuffix("Fast") == _CLASS


def blenderbot_small_files(
    folder: Path, vocabulary: Mapping[str, Any], merges: str, settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    A piece that merges make on the way, and vocab.json lacks, is unknown there; here it has an id that no model has, so
    that a text with it is refused.

    Raises:
        CheckpointError: a file is broken, or a token is missing that has a role.
    """
    config = settings.get(TOKENIZER_CONFIG, {})
    known = checked_ids(vocabulary, folder / VOCABULARY)
    missing = [token for token in _ROLES.values() if token not in known]
    if missing:
        raise CheckpointError(f"{folder / VOCABULARY} lacks {missing[0]}, which has a role in a BlenderbotSmall.")
    special = {*_ROLES.values()}
    ids = {token if token in special else _with_end(token): id_ for token, id_ in known.items()}
    following = itertools.count(max(known.values()) + 1)
    pairs = [line.split() for line in merges.split("\n")[1:] if line.strip()]
    for number, pair in enumerate(pairs, 2):
        if len(pair) != 2:
            raise CheckpointError(f"{folder / MERGES}: line {number} has {len(pair)} pieces; a merge joins two.")
        for piece in (*pair, "".join(pair)):
            if piece not in ids:
                ids[piece] = next(following)
    listed = listed_tokens(config, settings.get(ADDED_TOKENS, {}), folder)
    added = {token: added_token(known[token], token, special=True) for token in special}
    added |= {
        token["content"]: added_token(id_, token["content"], special=token.get("special") is True, like=token)
        for id_, token in listed
        if token["content"] not in special
    }
    new_lines = {"type": "Replace", "pattern": {"Regex": r"(?<=[^\s'])\n"}, "content": _NEW_LINE}
    spaces = {"type": "Replace", "pattern": {"String": _END}, "content": " "}
    tokenizer = {
        "version": "1.0",
        "added_tokens": sorted(added.values(), key=lambda token: int(token["id"])),
        "normalizer": {"type": "Sequence", "normalizers": [new_lines, {"type": "Lowercase"}]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                _split("[.,!?()]", "MergedWithNext"),
                _split("'", "Isolated"),
            ],
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": _ROLES["unk_token"],
            "end_of_word_suffix": _END,
            "vocab": ids,
            "merges": pairs,
        },
    }
    return files_of(json.dumps(tokenizer, ensure_ascii=False), {"tokenizer_class": "PreTrainedTokenizerFast", **_ROLES})


def _with_end(token: str) -> str:
    return token.removesuffix(_GOES_ON) if token.endswith(_GOES_ON) else token + _END


def _split(regex: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}

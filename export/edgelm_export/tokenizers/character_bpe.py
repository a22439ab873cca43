"""BPE over the characters of a whole text as tokenizer.json, with spaces as a character and bytes for what is no token.

So Gemma 4's tokenizer has it: SentencePiece's form of a text, and a list of merges in the place of scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_SPACE = "▁"


def character_bpe_json(
    vocabulary: Mapping[str, int],
    merges: Sequence[str],
    *,
    unknown: str | None,
    added: Sequence[Mapping[str, Any]],
    around: Mapping[str, Any] | None,
) -> str:
    """Return the content of tokenizer.json.

    unknown: the token of what has none, and no bytes. added: the tokens that are found in the text as they are; the
    vocabulary has them too. around: the post-processor.
    """
    parts = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": around,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(parts, ensure_ascii=False) + "\n"

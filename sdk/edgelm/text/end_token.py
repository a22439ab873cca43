"""The end token that a tokenizer's settings name: where several programs end an answer, whatever the model's say."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.files.regular_file import MAX_JSON_BYTES


def end_token_ids(settings: Mapping[str, Any], tokenizer: Path) -> tuple[int, ...]:
    """Return the id of the end token that a tokenizer's settings name, if it is listed among the added tokens.

    transformers lists them in the settings, since version 5 in tokenizer.json alone, before the vocabulary, which is
    not read.

    settings: of tokenizer_config.json. tokenizer: the path of tokenizer.json.

    Raises:
        OSError: tokenizer.json cannot be read.
    """
    end, listed = settings.get("eos_token"), settings.get("added_tokens_decoder")
    end = end.get("content") if isinstance(end, Mapping) else end
    if not isinstance(end, str):
        return ()
    tokens: Any = listed
    if isinstance(listed, dict):
        tokens = [{"id": id_, **token} for id_, token in listed.items() if isinstance(token, dict)]
    elif tokenizer.exists():
        with tokenizer.open("rb") as file:
            head = file.read(MAX_JSON_BYTES).decode("utf-8", "replace")
        with contextlib.suppress(ValueError, RecursionError):  # whoever opens it says what is wrong
            tokens, _ = json.JSONDecoder().raw_decode(head.partition('"added_tokens":')[2].lstrip())
    if not isinstance(tokens, list):
        return ()
    ids = (str(token.get("id")) for token in tokens if isinstance(token, dict) and token.get("content") == end)
    return tuple(int(id_) for id_ in ids if id_.isdecimal() and len(id_) < 9)

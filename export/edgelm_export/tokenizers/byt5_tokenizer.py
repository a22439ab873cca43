"""The tokenizer of a ByT5, of which a folder has no file: each byte of a text is a token, behind three others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.byte_level_tokenizer import OF_BYTES, byte_letters, byte_level_json
from edgelm_export.tokenizers.tokenizer_json import (
    ADDED_TOKENS,
    TOKENIZER_CONFIG,
    added_token,
    files_of,
    listed_tokens,
    post_processor,
)

BYT5 = "ByT5Tokenizer"
_FIRST = ("<pad>", "</s>", "<unk>")
_MOST_EXTRA = 1 << 10  # in use are 125
_ROLES = dict(zip(("pad_token", "eos_token", "unk_token"), _FIRST, strict=True))


def byt5_files(folder: Path, config: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    config: the folder's tokenizer_config.json. added: its added_tokens.json. Where neither lists the tokens behind the
    bytes, they are as many as `extra_ids` says.

    Raises:
        CheckpointError: a token has no id or no content, or one of the first three or of the bytes is another.
    """
    tokens = {index: str(value["content"]) for index, value in listed_tokens(config, added, folder)}
    of_bytes = (byte_letters(bytes([byte])) for byte in range(256))
    vocabulary = {text: place for place, text in enumerate((*_FIRST, *of_bytes))}
    behind = len(vocabulary)
    if not tokens:
        extra = config.get("extra_ids", 125)
        if type(extra) is not int or not 0 <= extra <= _MOST_EXTRA:
            raise CheckpointError(
                f"{folder / TOKENIZER_CONFIG}: extra_ids is {extra!r:.80}; it must be a whole number from 0 to "
                f"{_MOST_EXTRA}."
            )
        tokens = {behind + place: f"<extra_id_{place}>" for place in range(extra)}
    for index, text in tokens.items():
        if (index < behind and text not in vocabulary) or vocabulary.setdefault(text, index) != index:
            file = TOKENIZER_CONFIG if "added_tokens_decoder" in config else ADDED_TOKENS
            raise CheckpointError(
                f"{folder / file}: token {index} is {text!r:.80}; of a ByT5 the first are {', '.join(_FIRST)}, and "
                "then each byte."
            )
    control = dict(enumerate(_FIRST)) | tokens
    tokenizer = byte_level_json(
        OF_BYTES,
        vocabulary,
        [],
        added=[added_token(index, text, special=True) for index, text in sorted(control.items())],
        around=post_processor([], ["</s>"], vocabulary),
    )
    return files_of(tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **_ROLES})

"""Parts of a tokenizer.json that every rebuilt tokenizer has, and what stands beside a tokenizer in a folder."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgelm.errors import CheckpointError

TOKENIZER, TOKENIZER_CONFIG, ADDED_TOKENS = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
_PLAIN: Mapping[str, Any] = MappingProxyType({})


def json_text(values: Mapping[str, Any]) -> str:
    """Write settings as the files of a folder have them."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def class_name(
    config: Mapping[str, Any], model_config: Mapping[str, Any], of_models: Mapping[str, str] = _PLAIN
) -> Any:
    """Name the class of a folder's tokenizer: by its settings, its config.json, or in older ones by the model_type."""
    name = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    if name is None and isinstance(model_config.get("model_type"), str):
        name = of_models.get(model_config["model_type"])
    return name


def token_named(config: Mapping[str, Any], key: str, default: str | None = None) -> str | None:
    """Read a token of tokenizer_config.json: a text, or an object with one."""
    value = config.get(key, default)
    value = value.get("content") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else None


def files_of(tokenizer: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a rebuilt tokenizer and its settings: name -> content."""
    return {TOKENIZER: tokenizer, TOKENIZER_CONFIG: json_text(settings)}


def added_token(
    id_: int, content: str, *, special: bool, normalized: bool = False, like: Mapping[str, Any] = _PLAIN
) -> dict[str, Any]:
    """Describe a token that is found in the text as it is, before the model splits it.

    normalized: whether it is looked for behind the normalizer, in a text that still is one piece. like: transformers'
    settings of a token, of which those of its neighbours are taken: whether it takes the spaces before or behind it,
    and whether it has to stand alone.
    """
    return {
        "id": id_,
        "content": content,
        "single_word": like.get("single_word") is True,
        "lstrip": like.get("lstrip") is True,
        "rstrip": like.get("rstrip") is True,
        "normalized": normalized,
        "special": special,
    }


def listed_tokens(
    config: Mapping[str, Any], added: Mapping[str, Any], folder: Path
) -> list[tuple[int, Mapping[str, Any]]]:
    """List the tokens that a folder adds to its model's: the id, and transformers' settings with the `content`.

    config: its tokenizer_config.json. added: its added_tokens.json, which older versions of transformers wrote.

    Raises:
        CheckpointError: one has no id, or no content.
    """
    file, listed = TOKENIZER_CONFIG, config.get("added_tokens_decoder")
    pairs = list(listed.items()) if isinstance(listed, Mapping) else []
    if not isinstance(listed, Mapping):
        file, pairs = ADDED_TOKENS, [(str(index), {"content": content}) for content, index in added.items()]
    tokens = []
    for key, value in pairs:
        index = int(key) if key.isdecimal() and len(key) < 9 else -1
        content = value.get("content") if isinstance(value, Mapping) else None
        if index < 0 or not isinstance(content, str):
            raise CheckpointError(
                f"{folder / file}: the added token {reprlib.repr(key)} is {reprlib.repr(value)}; it has an id and a "
                "content."
            )
        tokens.append((index, value))
    return tokens


def post_processor(before: Sequence[str], after: Sequence[str], vocabulary: Mapping[str, int]) -> dict[str, Any] | None:
    """Describe the tokens that stand around every text; None where there are none."""

    def template(sequence: str, type_id: int) -> list[dict[str, Any]]:
        pieces = [{"SpecialToken": {"id": token, "type_id": type_id}} for token in before]
        pieces.append({"Sequence": {"id": sequence, "type_id": type_id}})
        return pieces + [{"SpecialToken": {"id": token, "type_id": type_id}} for token in after]

    if not before and not after:
        return None
    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in (*before, *after)
        },
    }

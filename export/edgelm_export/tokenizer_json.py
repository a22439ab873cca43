"""Parts of a tokenizer.json that every rebuilt tokenizer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def added_token(id_: int, content: str, *, special: bool, normalized: bool = False) -> dict[str, Any]:
    """Describe a token that is found in the text as it is, before the model splits it.

    normalized: whether it is looked for behind the normalizer, in a text that still is one piece.
    """
    return {
        "id": id_,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


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

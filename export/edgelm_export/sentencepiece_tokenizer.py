"""A SentencePiece tokenizer as tokenizer.json: the same pieces under the same ids, and the same ids for a text.

What tokenizers cannot say, and how near it comes:
- BPE. SentencePiece joins the pair whose joined piece has the best score, the leftmost of equals; tokenizers goes by a
  list of pairs. Every pair that makes a piece is in the list, ordered by the piece's score.
- Pieces that the user defined are never split or joined. They become added tokens. Where a space goes before the text
  and extra spaces stay (Llama), a space also goes before what follows such a token, as in llama.cpp; where extra spaces
  go, a text that begins with such a token gets none.
- The compiled normalization. tokenizers looks up characters with their accents, not the longest run: decomposed Hangul
  stays decomposed, as in transformers.
- Unigram. Of ways to split a text that score alike (`~~` and `~`, or `~` and `~~`) each takes one; sums are float32 in
  one and float64 in the other.
- The literal of a byte's piece (`<0x41>`) in a text is not that byte. A low score keeps it from being taken for it.
"""

from __future__ import annotations

import base64
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgelm.errors import CheckpointError
from edgelm_export.sentencepiece_model import PieceType, SentencePieceModel
from edgelm_export.tokenizer_json import added_token, post_processor

_SPACE = "▁"
_MAX_MERGES = 1 << 20  # twice those of the largest models; pieces that are all made of two letters have millions
_MAX_LOOKED_UP = 1 << 21  # 1.2 million are those of 262,143 pieces of 11 characters in the mean
# Longer than any piece: a byte's literal of six characters costs more than six pieces of the lowest score.
_BYTE_PENALTY = 8.0


def sentencepiece_json(
    model: SentencePieceModel,
    *,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    more: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build the tokenizer.json.

    before, after: control tokens around every text. more: added tokens beside the model's own, as `added_token` makes
    them; one with a piece's id takes its place.

    Raises:
        CheckpointError: a token that stands around texts is not there, a user-defined piece changes when the text is
            normalized, or more pairs make a piece than in any model.
    """
    names = token_names(model) | {token["id"]: token["content"] for token in more}
    vocabulary = {name: index for index, name in names.items()}
    missing = [token for token in (*before, *after) if token not in vocabulary]
    if missing or len(vocabulary) != len(names):
        problem = f"there is no token {missing[0]!r}" if missing else "two tokens have the same text"
        raise CheckpointError(f"The SentencePiece tokenizer cannot be rebuilt: {problem}.")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, more),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": (
            {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
            if _prefixes_later(model)
            else None
        ),
        "post_processor": post_processor(before, after, vocabulary),
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "model": _bpe(model, vocabulary) if model.kind == "bpe" else _unigram(model, names),
    }


def token_names(model: SentencePieceModel) -> dict[int, str]:
    """Return the text of each token by its id, without those that are unused."""
    names = dict(enumerate(model.texts))
    for index in model.places_of(PieceType.UNUSED):
        del names[index]
    for index in model.places_of(PieceType.USER_DEFINED):
        # It is found in the text as it was before spaces became another character.
        names[index] = names[index].replace(_SPACE, " ")
    return names


def _prefixes_later(model: SentencePieceModel) -> bool:
    """Tell whether the space before the text is put there behind the normalizer, before the first piece alone.

    Metaspace puts none where there is one, which is right only where the text's own are not kept beside it.
    """
    return model.add_dummy_prefix and model.remove_extra_whitespaces


def _added_tokens(model: SentencePieceModel, more: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = token_names(model)
    normalized = not model.add_dummy_prefix or _prefixes_later(model)
    tokens = {}
    for index in model.places_of(PieceType.CONTROL, PieceType.UNKNOWN):
        tokens[index] = added_token(index, names[index], special=True)
    for index in model.places_of(PieceType.USER_DEFINED):
        name = names[index]
        if normalized and model.charsmap and unicodedata.normalize("NFKC", name).strip() != name:
            raise CheckpointError(
                f"The SentencePiece tokenizer cannot be rebuilt: its user-defined piece {name!r} would be normalized."
            )
        tokens[index] = added_token(index, name, special=False, normalized=normalized)
    tokens |= {token["id"]: dict(token) for token in more}
    return [tokens[index] for index in sorted(tokens)]


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode("ascii")})
    if model.remove_extra_whitespaces:
        # One space at the beginning may stay: where a space is put before the text, it is that one.
        edges = r" +\z" if model.add_dummy_prefix else r"\A +| +\z"
        steps.append({"type": "Replace", "pattern": {"Regex": edges}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.add_dummy_prefix and not _prefixes_later(model):
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return steps


def _decoders(model: SentencePieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    if model.byte_fallback:
        steps.append({"type": "ByteFallback"})
    steps.append({"type": "Fuse"})
    if model.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _bpe(model: SentencePieceModel, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    unknown_id = model.unknown_id
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((name for name, index in vocabulary.items() if index == unknown_id), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,  # as SentencePiece joins unknown characters to one piece
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges(model, vocabulary),
    }


def _merges(model: SentencePieceModel, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """List every pair of pieces that makes a piece, by that one's score."""
    texts = model.texts
    ids = {texts[id_]: id_ for id_ in model.places_of(PieceType.NORMAL) if vocabulary.get(texts[id_]) == id_}
    ids.pop("", None)  # which is a part of nothing
    pairs = array("i")  # ids of a piece, of its left and of its right part
    # The pieces that the next one begins with, the shortest first: sorted, all of them come before it.
    lefts: list[tuple[str, int]] = []
    looked_up = 0
    for text in sorted(ids):
        joined = ids[text]
        while lefts and not text.startswith(lefts[-1][0]):
            lefts.pop()
        looked_up += len(lefts)
        for left, left_id in lefts:
            right_id = ids.get(text[len(left) :])
            if right_id is not None:
                pairs.extend((joined, left_id, right_id))
        lefts.append((text, joined))
        if len(pairs) > 3 * _MAX_MERGES or looked_up > _MAX_LOOKED_UP:
            problem = f"more than {_MAX_MERGES} pairs of its pieces make a piece"
            if looked_up > _MAX_LOOKED_UP:
                problem = f"its pieces begin more than {_MAX_LOOKED_UP} times with another"
            raise CheckpointError(f"The SentencePiece tokenizer cannot be rebuilt: {problem}.")
    joined_P, left_P, right_P = np.frombuffer(pairs, np.int32).reshape(-1, 3).T
    order = np.lexsort((right_P, left_P, -model.scores[joined_P]))
    return [(texts[left], texts[right]) for left, right in zip(left_P[order], right_P[order], strict=True)]


def _unigram(model: SentencePieceModel, names: Mapping[int, str]) -> dict[str, Any]:
    types = np.frombuffer(model.types, np.uint8)
    byte_score = model.scores[types == PieceType.NORMAL].min(initial=-1.0) * _BYTE_PENALTY
    scores = np.where(types == PieceType.BYTE, byte_score, model.scores).tolist()
    scores += [0.0] * (max(names) + 1 - len(scores))
    # Ids are places in this list. A text has no space any more when it comes here, so these are never found.
    return {
        "type": "Unigram",
        "unk_id": model.unknown_id,
        "vocab": [[names.get(index, f"unused {index}"), score] for index, score in enumerate(scores)],
        "byte_fallback": model.byte_fallback,
    }

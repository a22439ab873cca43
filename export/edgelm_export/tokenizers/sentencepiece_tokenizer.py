"""A SentencePiece tokenizer as tokenizer.json: the same pieces under the same ids, and the same ids for a text.

What tokenizers cannot say, and how near it comes:
- BPE. SentencePiece joins the pair whose joined piece has the best score, the leftmost of equals; tokenizers goes by a
  list of pairs. Every pair that makes a piece is in the list, ordered by the piece's score.
- Pieces that the user defined are never split or joined. They become added tokens. Where a space goes before the text
  and extra spaces stay (Llama), a space also goes before what follows such a token, as in llama.cpp; where extra spaces
  go, a text that begins with such a token gets none.
- The compiled normalization. tokenizers looks up characters with their accents, not the longest run, and of two accents
  drops one. SentencePiece's own rules all compose (NFKC), so the text is composed first (sentencepiece_composition.py).
- Unigram. Of ways to split a text that score alike (`~~` and `~`, or `~` and `~~`) each takes one; sums are float32 in
  one and float64 in the other.
- The literal of a byte's piece (`<0x41>`) in a text is not that byte. A low score keeps it from being taken for it.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.piece_pairs import pairs_of_pieces
from edgelm_export.tokenizers.sentencepiece_composition import composing_steps
from edgelm_export.tokenizers.sentencepiece_model import PieceType, SentencePieceModel
from edgelm_export.tokenizers.tokenizer_json import added_token, post_processor

_SPACE = "▁"
# Of the pieces of a BPE, each counted as often as it can be cut in two: 262,144 of nine or ten characters.
_MAX_CHARACTERS = 20 << 20
_MAX_MERGES = 1 << 19  # the largest model in use has 514,906
_AT_ONCE = 1 << 14  # pairs
# Longer than any piece: a byte's literal of six characters costs more than six pieces of the lowest score.
_BYTE_PENALTY = 8.0


def sentencepiece_json(
    model: SentencePieceModel,
    *,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    more: Sequence[Mapping[str, Any]] = (),
    prepared: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Build the tokenizer.json. Its largest parts are written here: json.dumps takes three times as long and as much.

    before, after: control tokens around every text. more: added tokens beside the model's own, as `added_token` makes
    them; one with a piece's id takes its place. prepared: steps of normalization before the model's own.

    Raises:
        CheckpointError: two tokens are alike, one that stands around texts is not there, a user-defined piece changes
            when the text is normalized, or the pieces are longer than in any model.
    """
    _check_cuts(model)
    names = token_names(model)
    names += [None] * (max((token["id"] + 1 for token in more), default=0) - len(names))
    for token in more:
        names[token["id"]] = token["content"]
    vocabulary = {name: index for index, name in enumerate(names) if name is not None}
    if len(vocabulary) != len(names) - names.count(None):
        raise _not_rebuilt(_alike(names))
    for name in (*before, *after):
        if name not in vocabulary:
            raise _not_rebuilt(f"there is no token {name!r}")
    parts = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, more),
        "normalizer": {"type": "Sequence", "normalizers": [*prepared, *_normalizers(model)]},
        "pre_tokenizer": (
            {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}
            if _prefixes_later(model)
            else None
        ),
        "post_processor": post_processor(before, after, vocabulary),
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
    }
    texts = _bpe(model, names) if model.kind == "bpe" else _unigram(model, names)
    # Joined as bytes: as a str, a part with one character beyond 16 bits takes four bytes for each.
    whole = bytearray(f'{_json(parts)[:-1]}, "model": ', "utf-8", "surrogatepass")
    for text in texts:
        whole += text.encode("utf-8", "surrogatepass")
    whole += b"}\n"
    return whole.decode("utf-8", "surrogatepass")


def token_names(model: SentencePieceModel) -> list[str | None]:
    """Return the text of each token; None for those that are unused."""
    names: list[str | None] = list(model.texts)
    for index in model.places_of(PieceType.UNUSED):
        names[index] = None
    for index in model.places_of(PieceType.USER_DEFINED):
        names[index] = _name(model, index)
    return names


def _name(model: SentencePieceModel, index: int) -> str:
    """Return the text of a token that is found before spaces become another character."""
    return model.texts[index].replace(_SPACE, " ")


def _alike(names: Sequence[str | None]) -> str:
    """Name the first two tokens that are alike."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name is not None and first.setdefault(name, index) != index:
            break
    return f"tokens {first[name or '']} and {index} are both {name!r:.80}"


def _check_cuts(model: SentencePieceModel) -> None:
    if model.kind != "bpe":
        return
    lengths = np.fromiter(map(len, model.texts), np.int64, len(model.texts))
    lengths = lengths[np.frombuffer(model.types, np.uint8) == PieceType.NORMAL]
    if (characters := int(np.sum(lengths * (lengths - 1)))) > _MAX_CHARACTERS:
        problem = f"its pieces have {characters} characters at all the places where they can be cut in two"
        raise _not_rebuilt(f"{problem}; at most {_MAX_CHARACTERS} are read")


def _prefixes_later(model: SentencePieceModel) -> bool:
    """Tell whether the space before the text is put there behind the normalizer, before the first piece alone.

    Metaspace puts none where there is one, which is right only where the text's own are not kept beside it.
    """
    return model.add_dummy_prefix and model.remove_extra_whitespaces


def _added_tokens(model: SentencePieceModel, more: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    normalized = not model.add_dummy_prefix or _prefixes_later(model)
    tokens = {}
    for index in model.places_of(PieceType.CONTROL, PieceType.UNKNOWN):
        tokens[index] = added_token(index, model.texts[index], special=True)
    for index in model.places_of(PieceType.USER_DEFINED):
        name = _name(model, index)
        if normalized and _normalized(model, name) != name:
            raise _not_rebuilt(f"its user-defined piece {name!r} would be normalized")
        tokens[index] = added_token(index, name, special=False, normalized=normalized)
    tokens |= {token["id"]: dict(token) for token in more}
    return [tokens[index] for index in sorted(tokens)]


def _normalized(model: SentencePieceModel, name: str) -> str:
    """Do with a name what the steps below do with a text; one that they leave nothing of would be found everywhere."""
    if model.charsmap:
        name = unicodedata.normalize("NFKC", name).strip()
    return re.sub(" {2,}", " ", name).strip(" ") if model.remove_extra_whitespaces else name


def _normalizers(model: SentencePieceModel) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if model.charsmap:
        steps += composing_steps()
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


def _bpe(model: SentencePieceModel, names: Sequence[str | None]) -> Iterator[str]:
    pieces, pairs_P = _merges(model, names)
    settings = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if model.unknown_id is None else names[model.unknown_id],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,  # as SentencePiece joins unknown characters to one piece
        "byte_fallback": model.byte_fallback,
        "ignore_merges": False,
    }
    entries = [f"{encode_basestring(name)}: {index}" for index, name in enumerate(names) if name is not None]
    yield f'{_json(settings)[:-1]}, "vocab": {{'
    yield ", ".join(entries)
    yield '}, "merges": ['
    # A pair as one text is read in half the time, where that text says which pair it is and is taken for no comment.
    as_text = not any(" " in piece or piece.startswith("#version") for piece in pieces)
    before, between, behind = ('"', " ", '"') if as_text else ('["', '", "', '"]')
    written = [encode_basestring(piece)[1:-1] for piece in pieces]
    for first in range(0, len(pairs_P), _AT_ONCE):
        parts = pairs_P[first : first + _AT_ONCE]
        lefts, rights = (parts >> 20 & 0xFFFFF).tolist(), (parts & 0xFFFFF).tolist()
        yield ", " if first else ""
        pairs = [f"{written[left]}{between}{written[right]}" for left, right in zip(lefts, rights, strict=True)]
        yield before + f"{behind}, {before}".join(pairs) + behind
    yield "]}"


def _merges(model: SentencePieceModel, names: Sequence[str | None]) -> tuple[list[str], NDArray[np.int64]]:
    """Find every pair of pieces that makes a piece, in the order of that one's score, then of the lengths of its parts.

    SentencePiece merges the leftmost of pairs that score alike, as all runs of spaces do in Llama's and Mistral's
    vocabularies: what has grown there goes on growing, so the longest left part comes first.

    Returns the pieces, and for each pair a number whose bits from 20 to 39 are the place of its left part among them,
    and those below of its right part.
    """
    texts = model.texts
    normal = [id_ for id_ in model.places_of(PieceType.NORMAL) if texts[id_] and names[id_] == texts[id_]]
    normal.sort(key=lambda id_: len(texts[id_]), reverse=True)
    pieces = [texts[id_] for id_ in normal]
    try:
        whole_P, left_P, right_P = pairs_of_pieces(pieces, _MAX_MERGES)
    except ValueError as error:
        raise _not_rebuilt(str(error)) from error
    rank = np.unique(-model.scores[normal], return_inverse=True)[1]
    # There are far fewer than 2**20 pieces.
    return pieces, np.sort(rank[whole_P] << 40 | left_P.astype(np.int64) << 20 | right_P)


def _unigram(model: SentencePieceModel, names: Sequence[str | None]) -> Iterator[str]:
    types = np.frombuffer(model.types, np.uint8)
    byte_score = model.scores[types == PieceType.NORMAL].min(initial=-1.0) * _BYTE_PENALTY
    scores = np.where(types == PieceType.BYTE, byte_score, model.scores).tolist()
    scores += [0.0] * (len(names) - len(scores))
    # Ids are places in this list. A text has no space any more when it comes here, so these are never found.
    texts = [f"unused {index}" if name is None else name for index, name in enumerate(names)]
    entries = [f"[{encode_basestring(text)}, {score!r}]" for text, score in zip(texts, scores, strict=True)]
    yield f'{{"type": "Unigram", "unk_id": {_json(model.unknown_id)}, "vocab": ['
    yield ", ".join(entries)
    yield f'], "byte_fallback": {_json(model.byte_fallback)}}}'


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _not_rebuilt(problem: str) -> CheckpointError:
    return CheckpointError(f"The SentencePiece tokenizer cannot be rebuilt: {problem}.")

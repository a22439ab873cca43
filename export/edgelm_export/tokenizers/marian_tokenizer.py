"""The tokenizer of a Marian folder: pieces of source.spm under the ids that vocab.json gives them.

A Marian model has one vocabulary for both languages, and a SentencePiece model for each. A source text is split by the
first alone. So the other language's pieces are in the rebuilt tokenizer, to be decoded, with scores so low that none is
taken where the source's own suffice; where they do not, a character's own piece is, as transformers looks it up. Two
such characters side by side are one unknown token there, and here two pieces. A language (`>>fra<<`) is one token
wherever it stands.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.sentencepiece_model import PieceType, read_sentencepiece
from edgelm_export.tokenizers.sentencepiece_tokenizer import sentencepiece_json
from edgelm_export.tokenizers.tokenizer_json import files_of

MARIAN_FILES = ("source.spm", "vocab.json")
_ROLES = {"</s>": PieceType.CONTROL, "<pad>": PieceType.CONTROL, "<unk>": PieceType.UNKNOWN}
_MAX_PIECES = 65 << 10  # the largest vocabularies in use have 65,001
_LANGUAGE = re.compile(r">>.+<<")  # what to translate to, at the beginning of a source
_FOREIGN_PENALTY = 16.0  # times the lowest score, for each character: no piece of the source costs as much


def marian_files(path: Path, vocabulary: Mapping[str, Any]) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    path: of source.spm. vocabulary: vocab.json's, piece -> id.

    Raises:
        CheckpointError: the model is broken or not a unigram, or the vocabulary does not count its pieces from 0 or has
            no </s>, <pad> or <unk>.
    """
    count, file = len(vocabulary), path.parent / "vocab.json"
    _check_count(file, count)
    by_id = {index: text for text, index in vocabulary.items() if type(index) is int}
    texts = [by_id[index] for index in range(count) if index in by_id]
    if len(texts) < count or not _ROLES.keys() <= vocabulary.keys():
        raise CheckpointError(f"{file} must count its {count} pieces from 0, and have {', '.join(_ROLES)}.")
    model = read_sentencepiece(path)
    _check_count(path, len(model.texts))
    if model.kind != "unigram":
        raise CheckpointError(f"{path} is a SentencePiece model of the kind {model.kind!r}; Marian's are unigrams.")
    scores = {
        text: score
        for text, score, type_ in zip(model.texts, model.scores.tolist(), model.types, strict=True)
        if type_ == PieceType.NORMAL
    }
    types = np.full(count, PieceType.NORMAL, np.uint8)
    types[[vocabulary[text] for text in filter(_LANGUAGE.fullmatch, texts)]] = PieceType.USER_DEFINED
    for text, type_ in _ROLES.items():
        types[vocabulary[text]] = type_
    if len(scores) < model.types.count(PieceType.NORMAL):
        raise CheckpointError(f"{path} has pieces that are alike.")
    foreign = min((*scores.values(), -1.0)) * _FOREIGN_PENALTY
    try:
        both = dataclasses.replace(
            model,
            texts=texts,
            scores=np.array([scores.get(text, foreign * len(text)) for text in texts]),
            types=types.tobytes(),
            roles={},
        )
        tokenizer = sentencepiece_json(both, after=["</s>"])
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return files_of(tokenizer, settings)


def _check_count(file: Path, count: int) -> None:
    if count > _MAX_PIECES:
        raise CheckpointError(f"{file} has {count} pieces; at most {_MAX_PIECES} are read.")

"""The tokenizer of a folder whose class gives the pieces of its SentencePiece model other ids than their places.

- fairseq's order (mBART, NLLB, PLBart): four tokens, the pieces behind the model's first three, the languages, <mask>.
- M2M100: the ids of vocab.json, and the languages behind them. A piece that it lacks, <unk> in transformers, gets an id
  that no model has, so that a text with it is refused; and a token of it that is no piece stands in no text.
- Pegasus: 103 tokens of its pretraining come first.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.sentencepiece_folder import SENTENCEPIECE_FILES, added_tokens
from edgelm_export.tokenizers.sentencepiece_model import PieceType, SentencePieceModel, read_sentencepiece
from edgelm_export.tokenizers.sentencepiece_tokenizer import sentencepiece_json
from edgelm_export.tokenizers.tokenizer_json import TOKENIZER_CONFIG, class_name, files_of
from edgelm_export.tokenizers.translator_class import CLASSES, TranslatorClass, translator_class

RENUMBERED_FILES = ("sentencepiece.bpe.model", *SENTENCEPIECE_FILES)
_VOCABULARY = "vocab.json"
_M2M_100, _PEGASUS = "M2M100Tokenizer", "PegasusTokenizer"
_CLASS_OF_MODEL = {"m2m_100": _M2M_100, "mbart": "MBartTokenizer", "pegasus": _PEGASUS, "plbart": "PLBartTokenizer"}
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
_OFFSET = 103
_OF_PRETRAINING = ("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, _OFFSET)))
# Settings that move ids.
_SUPPORTED: Mapping[str, Mapping[str, Any]] = {_M2M_100: {"language_codes": "m2m100"}, _PEGASUS: {"offset": _OFFSET}}
_Piece = tuple[str, float, int]


def renumbered_class(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str | None:
    """Name the class, if a folder's tokenizer is of one whose pieces have other ids.

    config: its tokenizer_config.json. model_config: its config.json.
    """
    name = class_name(config, model_config, _CLASS_OF_MODEL)
    name = name.removesuffix("Fast") if isinstance(name, str) else None
    return name if name == _PEGASUS or name in CLASSES else None


def renumbered_files(
    class_: str,
    path: Path,
    config: Mapping[str, Any],
    added: Mapping[str, Any],
    vocabulary: Callable[[], Mapping[str, Any]],
) -> dict[str, str]:
    """Build tokenizer.json and tokenizer_config.json: name -> content.

    class_: from `renumbered_class`. path: of the SentencePiece model. config: the folder's tokenizer_config.json.
    added: its added_tokens.json. vocabulary: reads its vocab.json, which M2M100 has.

    Raises:
        CheckpointError: the model is broken or begins with other pieces, vocab.json does not count its tokens from 0,
            or a token is missing that stands around a source.
    """
    model = read_sentencepiece(path)
    translator = translator_class(class_, config)
    for key, supported in _SUPPORTED.get(class_, {}).items():
        if config.get(key, supported) != supported:
            raise CheckpointError(
                f"{path.parent / TOKENIZER_CONFIG}: {key} is {reprlib.repr(config[key])}; supported is {supported}."
            )
    if translator is None:
        _check_beginning(model, ("<pad>", "</s>"), path)
        pieces = [*_control(_OF_PRETRAINING), *_pieces(model)[2:]]
        before, behind = list[str](), ["</s>"]
    else:
        before, behind = translator.around(config)
        if class_ == _M2M_100:
            pieces = _of_vocabulary(model, vocabulary(), path.with_name(_VOCABULARY), translator)
        else:
            _check_beginning(model, ("<unk>", "<s>", "</s>"), path)
            unknown = (_FAIRSEQ[-1], 0.0, int(PieceType.UNKNOWN))
            pieces = [*_control(_FAIRSEQ[:-1]), unknown, *_pieces(model)[3:]]
            if translator.languages:
                names = [translator.form.format(language) for language in translator.languages]
                pieces += _control([*names, "<mask>"] if translator.has_mask else names)
    texts, scores, types = zip(*pieces, strict=True)
    renumbered = replace(model, texts=texts, scores=np.array(scores), types=bytes(types), roles={})
    more = added_tokens(renumbered, config, added, path)
    known = {*texts, *(token["content"] for token in more)}
    missing = [token for token in (*before, *behind) if token not in known]
    if missing:
        raise CheckpointError(
            f"{path.parent} has no tokenizer.json, and nothing there says which id {missing[0]!r:.80} has, which "
            f"{class_} puts around a source. Put the tokenizer.json beside it that the model was published with."
        )
    try:
        tokenizer = sentencepiece_json(renumbered, before=before, after=behind, more=more)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    roles = {role: token for role, token in _ROLES.items() if token in known}
    return files_of(tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **roles})


def _pieces(model: SentencePieceModel) -> list[_Piece]:
    return list(zip(model.texts, model.scores.tolist(), model.types, strict=True))


def _control(texts: Sequence[str]) -> list[_Piece]:
    return [(text, 0.0, int(PieceType.CONTROL)) for text in texts]


def _check_beginning(model: SentencePieceModel, expected: Sequence[str], path: Path) -> None:
    found = tuple(model.texts[: len(expected)])
    if found != tuple(expected):
        raise CheckpointError(
            f"{path} begins with the pieces {', '.join(map(repr, found)):.80}; its tokenizer's class expects "
            f"{', '.join(expected)}."
        )


def _of_vocabulary(
    model: SentencePieceModel, vocabulary: Mapping[str, Any], file: Path, class_: TranslatorClass
) -> list[_Piece]:
    """Return the pieces in the order of vocab.json, the languages behind, and what it lacks at the end."""
    by_id = {index: text for text, index in vocabulary.items() if type(index) is int}
    count = len(vocabulary)
    if any(index not in by_id for index in range(count)) or not vocabulary.keys() >= {*_FAIRSEQ}:
        raise CheckpointError(f"{file} must count its {count} tokens from 0, and have {', '.join(_FAIRSEQ)}.")
    known = {text: (text, score, type_) for text, score, type_ in _pieces(model)}
    known |= {text: (text, 0.0, int(PieceType.UNUSED)) for text in vocabulary if text not in known}
    known |= {piece[0]: piece for piece in _control(_FAIRSEQ[:-1])}
    known[_FAIRSEQ[-1]] = (_FAIRSEQ[-1], 0.0, int(PieceType.UNKNOWN))
    pieces = [known[by_id[index]] for index in range(count)]
    pieces += _control([class_.form.format(language) for language in class_.languages])
    lacked = [piece for text, piece in known.items() if text not in vocabulary]
    # The made-up words of fairseq have ids behind the languages, and no text.
    made_up = [(f"made-up {i}", 0.0, int(PieceType.UNUSED)) for i in range(8 if lacked else 0)]
    return [*pieces, *made_up, *lacked]

"""SentencePieceModel: the pieces of a SentencePiece tokenizer and what it does to a text before it looks for them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal, NamedTuple

from edgelm.errors import CheckpointError, PackageError
from edgelm.files import regular_file
from edgelm.files.protobuf_wire import BYTES, FIXED32, VARINT, ProtobufWalk

# The largest models in use have 262,144 pieces of up to three fields, in 5 MB, and none a normal piece of more than 64
# characters. docs/results/trust.md has what the worst file costs.
MAX_BYTES = 8 << 20
_MAX_PIECES = (1 << 18) + (1 << 13)
_MAX_CHARACTERS = 256  # all places at which a normal piece can be cut in two are looked at
_MAX_FIELDS = 4 * _MAX_PIECES
Kind = Literal["unigram", "bpe"]
_KINDS: Mapping[int, Kind] = {1: "unigram", 2: "bpe"}  # TrainerSpec.ModelType
_ROLES = {"unk": (45, "<unk>"), "bos": (46, "<s>"), "eos": (47, "</s>"), "pad": (48, "<pad>")}  # of TrainerSpec


class PieceType(IntEnum):
    """What a piece is for: sentencepiece_model.proto, and llama_token_type in llama.h, have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TYPES = {int(type_): type_ for type_ in PieceType}  # looking one up here takes a fifth of the time


class Piece(NamedTuple):
    """One piece of the vocabulary. Its place in the model is its token id."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A SentencePiece tokenizer, whatever file it came in.

    charsmap: the normalization as SentencePiece compiled it, empty for none. add_dummy_prefix: a space before the text.
    roles: "bos", "eos", "unk" and "pad" to the pieces that have the role, those that there are.

    Raises:
        CheckpointError: two pieces are alike, a normal one has more than 256 characters, none or several stand for the
            unknown, or scores are no numbers.
    """

    kind: Kind
    pieces: tuple[Piece, ...]
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids: dict[str, int] = {}
        unused, normal = PieceType.UNUSED, PieceType.NORMAL
        for index, (text, score, type_) in enumerate(self.pieces):
            if not -1e30 < score < 1e30:
                raise CheckpointError(f"Piece {index}, {text!r:.80}, has the score {score}.")
            if type_ is not unused and ids.setdefault(text, index) != index:
                raise CheckpointError(f"Pieces {ids[text]} and {index} are both {text!r:.80}.")
            if len(text) > _MAX_CHARACTERS and type_ is normal:
                raise CheckpointError(
                    f"Piece {index}, {text[:40]!r}..., has {len(text)} characters; at most {_MAX_CHARACTERS} are read."
                )
        unknown = [index for index, piece in enumerate(self.pieces) if piece.type is PieceType.UNKNOWN]
        if len(unknown) > 1:
            raise CheckpointError(f"Pieces {unknown[:8]} all stand for the unknown; there must be one.")
        if self.kind == "unigram" and not unknown:
            raise CheckpointError("No piece stands for the unknown, which a unigram tokenizer needs.")

    @property
    def byte_fallback(self) -> bool:
        """Whether a character without a piece becomes the pieces of its bytes."""
        return any(piece.type is PieceType.BYTE for piece in self.pieces)

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for what has no piece."""
        return next((index for index, piece in enumerate(self.pieces) if piece.type is PieceType.UNKNOWN), None)


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model` (or `spiece.model`): a ModelProto of sentencepiece_model.proto.

    Raises:
        CheckpointError: the file is broken, or its kind or a setting is not supported.
    """
    try:
        data = regular_file.read_regular(path.resolve(), MAX_BYTES)
    except PackageError as error:
        raise CheckpointError(str(error)) from error
    walk = _Walk(data, path)
    try:
        return walk.model()
    except (IndexError, UnicodeDecodeError) as error:
        raise walk.error(f"is cut off or damaged ({error})") from error


class _Walk(ProtobufWalk):
    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data, _MAX_FIELDS)
        self._bytes, self._path = data, path

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {problem}. Download the tokenizer again, or save it as tokenizer.json.")

    def model(self) -> SentencePieceModel:
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for tag, start, end in self._fields(0, len(self._bytes)):
            if tag == 1 << 3 | BYTES:
                if len(pieces) == _MAX_PIECES:
                    raise self.error(f"has more than {_MAX_PIECES} pieces")
                pieces.append(self._piece(start, end))
            elif tag == 2 << 3 | BYTES:
                trainer |= self._values(start, end)
            elif tag == 3 << 3 | BYTES:
                normalizer |= self._values(start, end)
        kind = _KINDS.get(_number(trainer, 3, 1))
        if kind is None:
            raise self.error(f"has model type {trainer[3]!r}; supported are 1 (unigram) and 2 (bpe)")
        if _number(trainer, 24, 0):
            raise self.error("puts spaces behind words (treat_whitespace_as_suffix), which tokenizer.json cannot say")
        if not _number(normalizer, 5, 1):
            raise self.error("keeps spaces as they are (escape_whitespaces is off), which is not supported")
        names = {role: _bytes(trainer, number, default).decode("utf-8") for role, (number, default) in _ROLES.items()}
        wanted = frozenset(names.values())
        there = {piece.text for piece in pieces if piece.text in wanted}
        try:
            return SentencePieceModel(
                kind=kind,
                pieces=tuple(pieces),
                charsmap=_bytes(normalizer, 2),
                add_dummy_prefix=bool(_number(normalizer, 3, 1)),
                remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
                roles={role: text for role, text in names.items() if text in there},
            )
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from error

    def _piece(self, start: int, end: int) -> Piece:
        text, score, type_ = "", 0.0, int(PieceType.NORMAL)
        for tag, first, last in self._fields(start, end):
            if tag == 1 << 3 | BYTES:
                text = self._bytes[first:last].decode("utf-8")
            elif tag == 2 << 3 | FIXED32:
                (score,) = struct.unpack("<f", self._bytes[first:last])
            elif tag == 3 << 3 | VARINT:
                type_ = first
        if type_ not in _TYPES:
            raise self.error(f"has the piece {text!r:.80} of type {type_}")
        return Piece(text, score, _TYPES[type_])

    def _values(self, start: int, end: int) -> dict[int, int | bytes]:
        """Read the settings of a message by their numbers: whole numbers and bytes."""
        return {
            tag >> 3: first if tag & 7 == VARINT else self._bytes[first:last]
            for tag, first, last in self._fields(start, end)
        }


def _number(values: Mapping[int, int | bytes], number: int, default: int) -> int:
    value = values.get(number, default)
    return value if isinstance(value, int) else default


def _bytes(values: Mapping[int, int | bytes], number: int, default: str = "") -> bytes:
    value = values.get(number, default.encode())
    return value if isinstance(value, bytes) else b""

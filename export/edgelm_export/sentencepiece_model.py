"""SentencePieceModel: the pieces of a SentencePiece tokenizer and what it does to a text before it looks for them."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError, PackageError
from edgelm.files import regular_file
from edgelm.files.protobuf_wire import BYTES, FIXED32, VARINT, ProtobufWalk

# The largest models in use have 262,144 pieces of up to three fields, in 5 MB, and none a normal piece of more than 64
# characters. docs/results/trust.md has what the worst file costs.
MAX_BYTES = 7 << 20
_MAX_PIECES = (1 << 18) + (1 << 13)
_MAX_CHARACTERS = 256  # all places at which a normal piece can be cut in two are looked at
_MAX_OTHER_FIELDS = 1 << 15  # settings, and what is in pieces that are read one by one
_AT_ONCE = 1 << 14  # pieces
_SHORT = 128  # lengths and types below it take one byte
_MARGIN = 272  # bytes behind the file, where the end of a piece at its end is looked for: 2 + 255 + 7 are the most
_PIECE = 1 << 3 | BYTES  # the tag of a piece
Places = NDArray[np.int32]
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


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A SentencePiece tokenizer, whatever file it came in. A piece's place is its token id.

    texts, scores, types: of the pieces; scores are float64, and each byte of `types` is a PieceType. charsmap: the
    normalization as SentencePiece compiled it, empty for none. add_dummy_prefix: a space before the text. roles: "bos",
    "eos", "unk" and "pad" to the pieces that have the role, those that there are.

    Raises:
        CheckpointError: two pieces are alike, a normal one has more than 256 characters, none or several stand for the
            unknown, or scores are no numbers.
    """

    kind: Kind
    texts: Sequence[str]
    scores: NDArray[np.float64]
    types: bytes
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index in np.flatnonzero(~(np.abs(self.scores) < 1e30)).tolist():
            raise CheckpointError(f"Piece {index}, {self.texts[index]!r:.80}, has the score {self.scores[index]}.")
        used = self.texts
        if PieceType.UNUSED in self.types:
            used = [text for text, type_ in zip(self.texts, self.types, strict=True) if type_ != PieceType.UNUSED]
        if len(set(used)) < len(used):
            raise self._alike()
        if max(map(len, self.texts), default=0) > _MAX_CHARACTERS:
            self._refuse_long_ones()
        if len(unknown := self.places_of(PieceType.UNKNOWN)) > 1:
            raise CheckpointError(f"Pieces {unknown[:8]} all stand for the unknown; there must be one.")
        if self.kind == "unigram" and self.unknown_id is None:
            raise CheckpointError("No piece stands for the unknown, which a unigram tokenizer needs.")

    def _alike(self) -> CheckpointError:
        """Name the first two pieces that are alike, of a model that has such."""
        first: dict[str, int] = {}
        for index, (text, type_) in enumerate(zip(self.texts, self.types, strict=True)):
            if type_ != PieceType.UNUSED and first.setdefault(text, index) != index:
                break
        return CheckpointError(f"Pieces {first[text]} and {index} are both {text!r:.80}.")

    def _refuse_long_ones(self) -> None:
        for index, (text, type_) in enumerate(zip(self.texts, self.types, strict=True)):
            if len(text) > _MAX_CHARACTERS and type_ == PieceType.NORMAL:
                raise CheckpointError(
                    f"Piece {index}, {text[:40]!r}..., has {len(text)} characters; at most {_MAX_CHARACTERS} are read."
                )

    @property
    def byte_fallback(self) -> bool:
        """Whether a character without a piece becomes the pieces of its bytes."""
        return PieceType.BYTE in self.types

    def places_of(self, *types: PieceType) -> list[int]:
        """Return the ids of the pieces of some types, in order."""
        places: list[int] = np.flatnonzero(np.isin(np.frombuffer(self.types, np.uint8), types)).tolist()
        return places

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for what has no piece."""
        index = self.types.find(PieceType.UNKNOWN)
        return index if index >= 0 else None


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model` (or `spiece.model`): a ModelProto of sentencepiece_model.proto.

    Raises:
        CheckpointError: the file is broken, or its kind or a setting is not supported.
    """
    try:
        walk = _Walk(regular_file.read_regular(path.resolve(), MAX_BYTES), path)
    except PackageError as error:
        raise CheckpointError(str(error)) from error
    try:
        return walk.model()
    except (IndexError, ValueError) as error:
        raise walk.error(f"is cut off or damaged ({error})") from error


class _Walk(ProtobufWalk):
    def __init__(self, data: bytes, path: Path) -> None:
        self._bytes, self._end = data + bytes(_MARGIN), len(data)
        super().__init__(self._bytes, _MAX_OTHER_FIELDS)
        self._path = path

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {problem}. Download the tokenizer again, or save it as tokenizer.json.")

    def model(self) -> SentencePieceModel:
        starts, ends, position = array("i"), array("i"), 0  # of the pieces
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        while (position := self._skip_short_pieces(position, starts, ends)) < self._end:
            tag, start, position = next(self._fields(position, self._end))
            if tag == _PIECE:
                starts.append(start)
                ends.append(position)
            elif tag == 2 << 3 | BYTES:
                trainer |= self._values(start, position)
            elif tag == 3 << 3 | BYTES:
                normalizer |= self._values(start, position)
        if len(starts) > _MAX_PIECES:
            raise self.error(f"has more than {_MAX_PIECES} pieces")
        texts, scores, types = self._pieces(np.frombuffer(starts, np.int32), np.frombuffer(ends, np.int32))
        kind = _KINDS.get(_number(trainer, 3, 1))
        if kind is None:
            raise self.error(f"has model type {trainer[3]!r}; supported are 1 (unigram) and 2 (bpe)")
        if _number(trainer, 24, 0):
            raise self.error("puts spaces behind words (treat_whitespace_as_suffix), which tokenizer.json cannot say")
        if not _number(normalizer, 5, 1):
            raise self.error("keeps spaces as they are (escape_whitespaces is off), which is not supported")
        names = {role: _bytes(trainer, number, default).decode("utf-8") for role, (number, default) in _ROLES.items()}
        there = set(names.values()).intersection(texts)
        try:
            return SentencePieceModel(
                kind=kind,
                texts=texts,
                scores=scores,
                types=types,
                charsmap=_bytes(normalizer, 2),
                add_dummy_prefix=bool(_number(normalizer, 3, 1)),
                remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
                roles={role: text for role, text in names.items() if text in there},
            )
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from error

    def _skip_short_pieces(self, position: int, starts: array[int], ends: array[int]) -> int:
        """Go on over pieces whose length is one byte, as nearly all are, and note where they start and end."""
        data = self._bytes
        for _ in range(_MAX_PIECES + 1 - len(starts)):
            if data[position] != _PIECE or (length := data[position + 1]) >= _SHORT:
                break
            starts.append(position + 2)
            position += 2 + length
            ends.append(position)
        if position > self._end:
            raise self.error("is cut off or damaged (a piece goes past the end)")
        return position

    def _pieces(self, starts: Places, ends: Places) -> tuple[list[str], NDArray[np.float64], bytes]:
        """Read the pieces between `starts` and `ends`: their texts, scores and types."""
        texts: list[str] = []
        scores, types = np.zeros(len(starts)), bytearray()
        for first in range(0, len(starts), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            with np.errstate(invalid="ignore"):  # of a signaling NaN, which SentencePieceModel refuses
                some_texts, scores[some], some_types = self._some_pieces(starts[some], ends[some])
            for type_ in set(some_types) - set(PieceType):
                raise self.error(f"has the piece {some_texts[some_types.index(type_)]!r:.80} of type {type_}")
            texts += some_texts
            types += bytes(some_types)
        return texts, scores, bytes(types)

    def _some_pieces(self, starts: Places, ends: Places) -> tuple[list[str], NDArray[np.float32], list[int]]:
        """Read pieces at once where SentencePiece wrote them: a short text, a score, a type that is not the normal one.

        Others, whose fields are in another order or length, are read one by one.
        """
        content = np.frombuffer(self._bytes, np.uint8)
        lengths = content[starts + 1]
        behind = starts + 2 + lengths
        typed = (ends - behind == 7) & (content[behind + 5] == 3 << 3 | VARINT) & (content[behind + 6] < _SHORT)
        plain = (content[starts] == 1 << 3 | BYTES) & (lengths < _SHORT) & (content[behind] == 2 << 3 | FIXED32)
        plain &= typed | (ends - behind == 5)
        texts = _texts(content, starts + 2, np.where(plain, lengths, 0))
        scores = content[behind[:, None] + np.arange(1, 5)].view("<f4")[:, 0]
        types = np.where(typed, content[behind + 6], int(PieceType.NORMAL)).tolist()
        for index in np.flatnonzero(~plain).tolist():
            texts[index], scores[index], types[index] = self._piece(int(starts[index]), int(ends[index]))
        return texts, scores, types

    def _piece(self, start: int, end: int) -> tuple[str, float, int]:
        text, score, type_ = "", 0.0, int(PieceType.NORMAL)
        for tag, first, last in self._fields(start, end):
            if tag == 1 << 3 | BYTES:
                text = self._bytes[first:last].decode("utf-8")
            elif tag == 2 << 3 | FIXED32:
                (score,) = struct.unpack("<f", self._bytes[first:last])
            elif tag == 3 << 3 | VARINT:
                type_ = first
        return text, score, type_

    def _values(self, start: int, end: int) -> dict[int, int | bytes]:
        """Read the settings of a message by their numbers: whole numbers and bytes."""
        return {
            tag >> 3: first if tag & 7 == VARINT else self._bytes[first:last]
            for tag, first, last in self._fields(start, end)
        }


def _texts(content: NDArray[np.uint8], starts: Places, lengths: Places) -> list[str]:
    """Decode the texts of `lengths` bytes from `starts` on as one, with a NUL before each, and split it there."""
    sizes = lengths.astype(np.int32) + np.int32(1)
    marks = np.cumsum(sizes, dtype=np.int32) - sizes
    places = np.repeat(starts - np.int32(1) - marks, sizes)
    places += np.arange(len(places), dtype=np.int32)
    joined = content[places]
    joined[marks] = 0
    if np.count_nonzero(joined) != len(joined) - len(marks):
        raise ValueError("a piece holds a NUL")
    texts: list[str] = joined.tobytes().decode("utf-8").split("\0")
    return texts[1:]


def _number(values: Mapping[int, int | bytes], number: int, default: int) -> int:
    value = values.get(number, default)
    return value if isinstance(value, int) else default


def _bytes(values: Mapping[int, int | bytes], number: int, default: str = "") -> bytes:
    value = values.get(number, default.encode())
    return value if isinstance(value, bytes) else b""

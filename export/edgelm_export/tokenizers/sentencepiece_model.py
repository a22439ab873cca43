"""SentencePieceModel: the pieces of a SentencePiece tokenizer and what it does to a text before it looks for them."""

from __future__ import annotations

import re
import struct
from array import array
from bisect import bisect_left
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

# The largest models in use have 262,144 pieces of up to three fields, in 5 MB, and 6,500 other fields.
# docs/results/trust.md has what the worst file costs.
MAX_BYTES = 21 << 18
_MAX_PIECES = (1 << 18) + (1 << 13)
_MAX_OTHER_FIELDS = 5 << 11  # settings, and what is in pieces that are read one by one
_AT_ONCE = 1 << 13  # pieces
_WINDOW = 1 << 18  # bytes
_SHORT = 128  # lengths and types below it take one byte
_MARGIN = 272  # zeros behind the file, where the end of a piece at its end is looked for
_PIECE, _TEXT, _SCORE, _TYPE = 1 << 3 | BYTES, 1 << 3 | BYTES, 2 << 3 | FIXED32, 3 << 3 | VARINT  # tags
# A tag and a length before the text, a tag and a number behind it, and where there is a type, two bytes more.
_SCORED, _TYPED = 7, 9
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a token in base64, and its id
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


_TYPES = frozenset(PieceType)


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A SentencePiece tokenizer, whatever file it came in. A piece's place is its token id.

    texts, scores, types: of the pieces; scores are float64, and each byte of `types` is a PieceType. charsmap: the
    normalization as SentencePiece compiled it, empty for none. add_dummy_prefix: a space before the text. roles: "bos",
    "eos", "unk" and "pad" to the pieces that have the role, those that there are.

    Raises:
        CheckpointError: none or several pieces stand for the unknown, or scores are no numbers.
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
        if len(unknown := self.places_of(PieceType.UNKNOWN)) > 1:
            raise CheckpointError(f"Pieces {unknown[:8]} all stand for the unknown; there must be one.")
        if self.kind == "unigram" and self.unknown_id is None:
            raise CheckpointError("No piece stands for the unknown, which a unigram tokenizer needs.")

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
        data = regular_file.read_regular(path.resolve(), MAX_BYTES)
    except PackageError as error:
        raise CheckpointError(str(error)) from error
    if _TIKTOKEN_LINE.match(data):
        raise CheckpointError(
            f"{path} is a list of tokens for tiktoken, as Meta's Llama 3 has it, and does not say how a text is split. "
            "Put the model's tokenizer.json beside it: folders for transformers have one."
        )
    walk = _Walk(data, path)
    try:
        return walk.model()
    except (IndexError, ValueError) as error:
        raise walk.error(f"is cut off or damaged ({error})") from error


class _Walk(ProtobufWalk):
    def __init__(self, data: bytes, path: Path) -> None:
        self._bytes, self._end = data + bytes(_MARGIN), len(data)
        self._content = np.frombuffer(self._bytes, np.uint8)
        super().__init__(self._bytes, _MAX_OTHER_FIELDS)
        self._path = path

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path} {problem}. Download the tokenizer again, or save it as tokenizer.json.")

    def model(self) -> SentencePieceModel:
        starts, others, position, scanned = array("i"), list[tuple[int, int, int]](), 0, 0
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        while position < self._end and len(starts) <= _MAX_PIECES:
            if position >= scanned:
                scanned = min(position + _WINDOW, self._end)
                runs = _Runs(self._content, position, scanned)
            if (behind := runs.skip(position, starts)) > position:
                position = behind
                continue
            tag, start, position = next(self._fields(position, self._end))
            if tag == _PIECE:
                others.append((len(starts), start, position))
                starts.append(self._end)  # where an empty text is
            elif tag == 2 << 3 | BYTES:
                trainer |= self._values(start, position)
            elif tag == 3 << 3 | BYTES:
                normalizer |= self._values(start, position)
        if position > self._end:
            raise self.error("is cut off or damaged (a piece goes past the end)")
        if len(starts) > _MAX_PIECES:
            raise self.error(f"has more than {_MAX_PIECES} pieces")
        texts, scores, types = self._pieces(np.frombuffer(starts, np.int32), others)
        kind = _KINDS.get(_number(trainer, 3, 1))
        if kind is None:
            raise self.error(f"has model type {trainer[3]!r}; supported are 1 (unigram) and 2 (bpe)")
        if _number(trainer, 24, 0):
            raise self.error("puts spaces behind words (treat_whitespace_as_suffix), which tokenizer.json cannot say")
        if not _number(normalizer, 5, 1):
            raise self.error("keeps spaces as they are (escape_whitespaces is off), which is not supported")
        names = {role: _bytes(trainer, number, default).decode("utf-8") for role, (number, default) in _ROLES.items()}
        given = frozenset(names.values()).intersection(texts)
        try:
            return SentencePieceModel(
                kind=kind,
                texts=texts,
                scores=scores,
                types=types,
                charsmap=_bytes(normalizer, 2),
                add_dummy_prefix=bool(_number(normalizer, 3, 1)),
                remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
                roles={role: text for role, text in names.items() if text in given},
            )
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from error

    def _pieces(
        self, starts: Places, others: Sequence[tuple[int, int, int]]
    ) -> tuple[list[str], NDArray[np.float64], bytes]:
        """Read the texts, scores and types of the pieces at `starts`, and those of `others`: index, start, end."""
        content, texts = self._content, list[str]()
        numbers = np.ndarray((len(content) - 3,), "<f4", self._bytes, strides=(1,))  # those that begin at each byte
        scores, types = np.empty(len(starts)), np.empty(len(starts), np.uint8)
        with np.errstate(invalid="ignore"):  # of a signaling NaN, which SentencePieceModel refuses
            for first in range(0, len(starts), _AT_ONCE):
                part = slice(first, first + _AT_ONCE)
                pieces = starts[part]
                lengths = content[pieces + 3]
                behind = pieces + 4 + lengths
                texts += _texts(content, pieces)
                scores[part] = numbers[behind + 1]
                typed = content[pieces + 1] - lengths == _TYPED
                types[part] = np.where(typed, content[behind + 6], np.uint8(PieceType.NORMAL))
            for index, start, end in others:
                texts[index], scores[index], types[index] = self._piece(start, end)
        for index in np.flatnonzero(~np.isin(types, tuple(_TYPES))).tolist():
            raise self._unknown_type(texts[index], int(types[index]))
        return texts, scores, types.tobytes()

    def _piece(self, start: int, end: int) -> tuple[str, float, int]:
        text, score, type_ = "", 0.0, int(PieceType.NORMAL)
        for tag, first, last in self._fields(start, end):
            if tag == 1 << 3 | BYTES:
                text = self._bytes[first:last].decode("utf-8")
            elif tag == 2 << 3 | FIXED32:
                (score,) = struct.unpack("<f", self._bytes[first:last])
            elif tag == 3 << 3 | VARINT:
                type_ = first
        if type_ not in _TYPES:
            raise self._unknown_type(text, type_)
        return text, score, type_

    def _unknown_type(self, text: str, type_: int) -> CheckpointError:
        return self.error(f"has the piece {text!r:.80} of type {type_}")

    def _values(self, start: int, end: int) -> dict[int, int | bytes]:
        """Read the settings of a message by their numbers: whole numbers and bytes."""
        return {
            tag >> 3: first if tag & 7 == VARINT else self._bytes[first:last]
            for tag, first, last in self._fields(start, end)
        }


class _Runs:
    """The pieces of a window that are as SentencePiece writes them: a short text, a score, perhaps a type.

    They are looked for everywhere at once. What only looks like one, inside of another, is passed over by `skip`.
    """

    def __init__(self, content: NDArray[np.uint8], first: int, last: int) -> None:
        window = content[first : last + 3]
        rest = window[1:-2] - window[3:]  # what a piece takes beside its text, if it is one
        likely = (window[:-3] == _PIECE) & (window[2:-1] == _TEXT) & ((rest == _SCORED) | (rest == _TYPED))
        likely &= window[1:-2] < _SHORT
        starts = np.flatnonzero(likely).astype(np.int32) + np.int32(first)
        behind, ends = starts + 4 + content[starts + 3], starts + 2 + content[starts + 1]
        typed = (ends - behind == _TYPED - 2) & (content[behind + 5] == _TYPE) & (content[behind + 6] < _SHORT)
        plain = (content[behind] == _SCORE) & (typed | (ends - behind == _SCORED - 2))
        self._starts_P, self._ends_P = starts[plain], ends[plain]
        self._starts = self._starts_P.tolist()
        last_ones = np.flatnonzero(self._ends_P[:-1] != self._starts_P[1:]).tolist()
        self._last_ones = [*last_ones, len(self._starts) - 1]

    def skip(self, position: int, starts: array[int]) -> int:
        """Go on over the pieces from `position` on, note where they start, and return the place behind them."""
        first = bisect_left(self._starts, position)
        if first == len(self._starts) or self._starts[first] != position:
            return position
        last = self._last_ones[bisect_left(self._last_ones, first)]
        starts.frombytes(self._starts_P[first : last + 1].tobytes())
        return int(self._ends_P[last])


def _texts(content: NDArray[np.uint8], pieces: Places) -> list[str]:
    """Decode the texts of pieces as one, with a NUL before each, and split it there."""
    sizes = content[pieces + 3].astype(np.int32) + np.int32(1)
    marks = np.cumsum(sizes, dtype=np.int32) - sizes
    places = np.repeat(pieces + np.int32(3) - marks, sizes)
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

"""GGUF files (versions 2 and 3): read the header within bounds, map the tensors.

The format is described in ggml's docs/gguf.md. A file is foreign input: every count, length and offset is compared
with the bytes that remain before anything is allocated or looped over.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgelm.errors import CheckpointError
from edgelm_export.packed.gguf_types import FIRST_OF_IK_LLAMA, TENSOR_TYPES, UNSUPPORTED_TYPE_NAMES

MAGIC = b"GGUF"
# The largest vocabularies have 262,144 tokens with scores and types, and 514,906 merges: under 20 MB in all, of which
# 9 MB are the strings' own. The most tensors and keys in use are 1,400 and 80; no model has arrays of arrays.
# docs/results/trust.md has what the worst header costs.
MAX_HEADER_BYTES = 32 << 20
_MAX_ELEMENTS = {"numbers": 600_000, "strings": 786_432}  # of all arrays together
_MAX_STRINGS_BYTES = 10 << 20
_STRINGS_AT_ONCE, _PART_BYTES = 1 << 12, 1 << 17  # so many are looked for in a part of the header
_MAX_TEXT_BYTES = 1 << 20  # of one string by itself; the longest in use is a chat template
MAX_TENSORS = _MAX_KEYS = 1 << 12
_MAX_ARRAYS = 1 << 12
_MAX_NESTING = 4
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_KEY_BYTES = 65535  # both as docs/gguf.md says
_MAX_TENSOR_NAME_BYTES = 64
_DEFAULT_ALIGNMENT = 32
# Sound files look damaged where a fork has other blocks under a number of llama.cpp's.
_OF_A_FORK = {"Q2_0": ". Or PrismML's fork of llama.cpp wrote it, whose Q2_0 has blocks of 128, not supported"}

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("<u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
# The fewest bytes that one array element can take, for the types of varying size.
_STRING_MINIMUM, _ARRAY_MINIMUM = 8, 12
_LENGTH = struct.Struct("<Q")  # of a string, before it
_KEY_VALUE_MINIMUM = 8 + 4 + 1
_TENSOR_MINIMUM = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """One tensor of a GGUF file: its shape in numpy's order (rows first), type name, and place in the file in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GGUFStrings:
    """The strings of an array, in the mapped file. Each is decoded when it is its turn: most are never asked for.

    places: where the length of each begins, and behind them the end of the last.

    Raises:
        CheckpointError: one that is read is not UTF-8.
    """

    def __init__(self, name: str, content: memoryview, places: array[int]) -> None:
        self._name = name
        self._content = content
        self._places = places

    def __len__(self) -> int:
        return len(self._places) - 1

    def __iter__(self) -> Iterator[str]:
        content = self._content
        for index, (start, end) in enumerate(pairwise(self._places)):
            try:
                text = str(content[start + _LENGTH.size : end], "utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{self._name}: element {index} is not UTF-8: {error.reason}.") from error
            yield text

    def __repr__(self) -> str:
        return f"{len(self)} strings"


class GGUFFile:
    """A GGUF file: metadata as plain Python values, arrays and GGUFStrings, tensors as views on the mapped file.

    A context manager. Closing it drops the map; views and strings that were handed out stay valid and keep it alive.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, GGUFTensor],
        content: NDArray[np.uint8],
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self._content: NDArray[np.uint8] | None = content

    @classmethod
    def open(cls, path: Path, header_bytes: int = MAX_HEADER_BYTES) -> GGUFFile:
        """Map a GGUF file and read its header.

        Raises:
            CheckpointError: the file cannot be read, is no GGUF file of version 2 or 3, or its header is broken or
                larger than `header_bytes`; the message names the file, the field and the value.
        """
        try:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray) if path.stat().st_size else np.empty(0, np.uint8)
        except OSError as error:
            raise CheckpointError(f"Cannot read {path}: {error}.") from error
        header = _Header(path, content.data[:header_bytes], len(content))
        tensor_count, key_count = header.start()
        metadata = header.metadata(key_count)
        tensors = header.tensors(tensor_count, _alignment(path, metadata))
        return cls(path, MappingProxyType(metadata), MappingProxyType(tensors), content)

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes: uint8 [nbytes], a read-only view on the map.

        Raises:
            CheckpointError: there is no such tensor, or the file is closed.
        """
        if self._content is None:
            raise CheckpointError(f"{self.path} is closed.")
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}.")
        tensor = self.tensors[name]
        return self._content[tensor.offset : tensor.offset + tensor.nbytes]

    def close(self) -> None:
        """Drop the map."""
        self._content = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_gguf(path: Path) -> bool:
    """Tell whether a path is that of a GGUF file which can be read, by its first bytes."""
    try:
        if not path.is_file():  # opening a pipe waits for ever
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value & (value - 1):
        raise CheckpointError(f"{path}: general.alignment is {value!r:.80}; it must be a power of two.")
    return value


class _Header:
    """A read position in the header of a GGUF file; no read goes past the end."""

    def __init__(self, path: Path, content: memoryview, file_bytes: int) -> None:
        self._path = path
        self._content = content
        self._end = len(content)
        self._file_bytes = file_bytes
        self._position = 0
        self._elements_left, self._arrays_left = dict(_MAX_ELEMENTS), _MAX_ARRAYS
        self._strings_bytes_left = _MAX_STRINGS_BYTES

    def start(self) -> tuple[int, int]:
        """Read magic, version and counts: (tensors, metadata keys)."""
        magic = bytes(self._content[: len(MAGIC)])
        if magic != MAGIC:
            raise self._error("magic", f"is {magic!r}, not {MAGIC!r}: this is no GGUF file")
        self._position = len(MAGIC)
        version = self._unsigned(4, "version")
        if version and version & 0xFFFF == 0:
            raise self._error("version", f"is {version:#x}: big-endian files are not supported")
        if version not in (2, 3):
            raise self._error("version", f"is {version}; versions 2 and 3 are supported. Convert the model again")
        tensors = self._count("tensor count", _TENSOR_MINIMUM)
        keys = self._count("metadata count", _KEY_VALUE_MINIMUM)
        for field, count, most in (("tensor count", tensors, MAX_TENSORS), ("metadata count", keys, _MAX_KEYS)):
            if count > most:
                raise self._error(field, f"is {count}; at most {most} are read")
        return tensors, keys

    def metadata(self, count: int) -> dict[str, Any]:
        """Read `count` keys with their values."""
        values: dict[str, Any] = {}
        for index in range(count):
            key = self._string(f"key {index}", _MAX_KEY_BYTES)
            if key in values:
                raise self._error(f"key {key!r}", "appears twice")
            values[key] = self._value(self._unsigned(4, f"type of {key!r}"), key, _MAX_NESTING)
        return values

    def tensors(self, count: int, alignment: int) -> dict[str, GGUFTensor]:
        """Read `count` tensor descriptions and place them in the file behind the header."""
        described = [self._tensor(index) for index in range(count)]
        data_start = -(-self._position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, type_id, offset in described:
            if name in tensors:
                raise self._error(f"tensor {name!r}", "appears twice")
            if offset % alignment:
                raise self._error(f"tensor {name!r}", f"has offset {offset}, which is not aligned to {alignment}")
            tensors[name] = self._placed(name, shape, type_id, data_start + offset)
        for first, second in pairwise(sorted(tensors.values(), key=lambda tensor: tensor.offset)):
            if first.offset + first.nbytes > second.offset:
                places = f"at offset {second.offset} overlaps {first.name!r} at {first.offset}"
                raise self._error(f"tensor {second.name!r}", places + _OF_A_FORK.get(first.type, ""))
        return tensors

    def _placed(self, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> GGUFTensor:
        tensor_type = TENSOR_TYPES.get(type_id)
        if tensor_type is None:
            other = "unknown" if type_id < FIRST_OF_IK_LLAMA else "unknown, or one of ik_llama.cpp's own"
            type_name = UNSUPPORTED_TYPE_NAMES.get(type_id, other)
            supported = ", ".join(known.name for known in TENSOR_TYPES.values())
            raise self._error(
                f"tensor {name!r}",
                f"has type {type_id} ({type_name}), which is not supported; supported: {supported}",
            )
        if shape[-1] % tensor_type.block_size:
            raise self._error(
                f"tensor {name!r}",
                f"has rows of {shape[-1]} weights, not a multiple of {tensor_type.name}'s {tensor_type.block_size}",
            )
        nbytes = tensor_type.nbytes(shape)
        if offset + nbytes > self._file_bytes:
            raise self._error(
                f"tensor {name!r}",
                f"of shape {shape} at offset {offset} needs {nbytes} bytes, and the file ends at "
                f"{self._file_bytes}. It was cut off or damaged: download it again"
                + _OF_A_FORK.get(tensor_type.name, ""),
            )
        return GGUFTensor(name=name, shape=shape, type=tensor_type.name, offset=offset, nbytes=nbytes)

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(f"name of tensor {index}", _MAX_TENSOR_NAME_BYTES)
        dimensions = self._unsigned(4, f"dimension count of tensor {name!r}")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"tensor {name!r}", f"has {dimensions} dimensions; 1 to {_MAX_DIMENSIONS} are supported")
        sizes = [self._unsigned(8, f"dimension {axis} of tensor {name!r}") for axis in range(dimensions)]
        # ggml counts with int64.
        if not 1 <= math.prod(sizes) < 1 << 63:
            raise self._error(f"tensor {name!r}", f"has the impossible dimensions {sizes}")
        type_id = self._unsigned(4, f"type of tensor {name!r}")
        return name, tuple(reversed(sizes)), type_id, self._unsigned(8, f"offset of tensor {name!r}")

    def _value(self, type_id: int, key: str, nesting: int) -> Any:
        if type_id in _NUMBERS:
            return self._numbers(type_id, 1, key)[0]
        if type_id == _STRING:
            return self._string(f"value of {key!r}", _MAX_TEXT_BYTES)
        if type_id == _ARRAY:
            return self._array(key, nesting)
        raise self._error(f"key {key!r}", f"has the unknown value type {type_id}")

    def _array(self, key: str, nesting: int) -> list[Any] | array[Any] | GGUFStrings:
        if not nesting:
            raise self._error(f"key {key!r}", f"nests arrays more than {_MAX_NESTING} deep")
        self._arrays_left -= 1
        if self._arrays_left < 0:
            raise self._error(f"key {key!r}", f"has more arrays than {_MAX_ARRAYS}, which all keys may have together")
        type_id = self._unsigned(4, f"element type of {key!r}")
        if type_id in _NUMBERS:
            return self._numbers(type_id, self._length(key, _NUMBERS[type_id].itemsize, "numbers"), key)
        if type_id == _STRING:
            return self._strings(self._length(key, _STRING_MINIMUM, "strings"), key)
        if type_id == _ARRAY:
            return [
                self._array(key, nesting - 1) for _ in range(self._count(f"array length of {key!r}", _ARRAY_MINIMUM))
            ]
        raise self._error(f"key {key!r}", f"has elements of the unknown value type {type_id}")

    def _length(self, key: str, minimum: int, kind: str) -> int:
        length = self._count(f"array length of {key!r}", minimum)
        self._elements_left[kind] -= length
        if self._elements_left[kind] < 0:
            raise self._error(
                f"array length of {key!r}", f"is {length}; all arrays may have {_MAX_ELEMENTS[kind]} {kind} together"
            )
        return length

    def _numbers(self, type_id: int, count: int, key: str) -> list[bool] | array[Any]:
        dtype = _NUMBERS[type_id]
        start = self._advance(count * dtype.itemsize, f"value of {key!r}")
        numbers = np.frombuffer(self._content, dtype, count, start)
        if type_id == _BOOL:
            if numbers.size and numbers.max() > 1:
                raise self._error(f"value of {key!r}", f"is {numbers.max()}, which is no boolean")
            flags: list[bool] = numbers.astype(bool).tolist()
            return flags
        return array(dtype.char, numbers.tobytes())

    def _strings(self, count: int, key: str) -> GGUFStrings:
        # Where a string ends says where the next begins: a loop in Python, over 100,000 strings in the smallest models.
        # So it takes two bytes of each length, from a copy of a part of the file, and the whole lengths are compared
        # behind it. A part that does not hold so many strings is gone through again for half of them.
        position, room = self._position, self._position + _LENGTH.size * count + self._strings_bytes_left
        end = min(self._end, room)
        places, at_once = array("I", [position]), _STRINGS_AT_ONCE
        while (left := count + 1 - len(places)) and position <= end:
            positions = max(0, min(_PART_BYTES, end - position - 1))
            lengths = np.ndarray((positions,), "<u2", self._content, position, strides=(1,))
            steps, place = memoryview(np.add(lengths, _LENGTH.size, dtype=np.uint32)), 0
            try:
                part = array("I", [place := place + steps[place] for _ in range(min(left, at_once))])
            except IndexError:
                at_once //= 2
                if not at_once:
                    position = end + 1
                continue
            places.frombytes((np.frombuffer(part, np.uint32) + np.uint32(position)).tobytes())
            position += place
        if position > end:
            past = (
                "the end of the header" if end < room else f"the {_MAX_STRINGS_BYTES} bytes that all strings may have"
            )
            raise self._error(f"value of {key!r}", f"goes past {past}")
        self._check_lengths(np.frombuffer(places, np.uint32), key)
        self._position, self._strings_bytes_left = position, room - position
        return GGUFStrings(f"{self._path}: {key}", self._content[:end], places)

    def _check_lengths(self, places: NDArray[np.uint32], key: str) -> None:
        """Check that each length is what two of its bytes have said."""
        lengths = np.ndarray((len(self._content) - 7,), "<u8", self._content, strides=(1,))[places[:-1]]
        wrong = np.flatnonzero(lengths != places[1:] - places[:-1] - _LENGTH.size)
        if wrong.size:
            raise self._error(
                f"value of {key!r}",
                f"has a string of {lengths[wrong[0]]} bytes (element {wrong[0]}); in an array each may have 65535",
            )

    def _string(self, field: str, limit: int) -> str:
        length = self._unsigned(8, f"length of {field}")
        if length > limit:
            raise self._error(field, f"has {length} bytes; at most {limit} are allowed")
        start = self._advance(length, field)
        try:
            return str(self._content[start : self._position], "utf-8")
        except UnicodeDecodeError as error:
            raise self._error(field, f"is not UTF-8: {error.reason}") from error

    def _count(self, field: str, minimum: int) -> int:
        """Read a number of elements that take at least `minimum` bytes each."""
        count = self._unsigned(8, field)
        if count > (self._end - self._position) // minimum:
            raise self._error(field, f"is {count}, but {self._end - self._position} bytes remain for the header")
        return count

    def _unsigned(self, size: int, field: str) -> int:
        start = self._advance(size, field)
        return int.from_bytes(self._content[start : start + size], "little")

    def _advance(self, size: int, field: str) -> int:
        """Move `size` bytes on and return where they start."""
        start = self._position
        if size > self._end - start:
            raise self._error(field, f"needs {size} bytes; {self._end - start} remain for the header")
        self._position = start + size
        return start

    def _error(self, field: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {field} {problem}.")

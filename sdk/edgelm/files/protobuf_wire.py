"""The wire format of protocol buffers, read within bounds: fields, numbers, and nothing past the end of a message.

And written, field by field, by `message_field` and the functions beside it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator

from edgelm.errors import EdgeLMError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class ProtobufWalk:
    """Walk the fields of nested messages in `data`, `max_fields` of them at most.

    A number of several bytes counts as a field more, one of more than five as two.
    Source: https://protobuf.dev/programming-guides/encoding. Groups, which proto3 no longer has, are refused.
    """

    def __init__(self, data: bytes | mmap.mmap, max_fields: int) -> None:
        self._data = data
        self._max_fields = self._fields_left = max_fields

    def error(self, problem: str) -> EdgeLMError:
        """Make the error of a broken message; its text goes on from the name of the file: "is cut off"."""
        raise NotImplementedError

    def _varint(self, position: int) -> tuple[int, int]:
        """Read a number of 64 bits without a sign; return it and the place behind it. An IndexError is the end."""
        data, value = self._data, 0
        for shift in range(0, 70, 7):
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                self._fields_left -= 1 + shift // 35  # it takes as long as a field, or two
                return value & (1 << 64) - 1, position
        raise self.error("is damaged (a number of more than ten bytes)")

    def _fields(self, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (tag, start, end) of each field of a message; of a varint (tag, value, end)."""
        data = self._data
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self.error(f"has more than {self._max_fields} fields")
            tag = data[position]
            position += 1
            if tag > 127:
                tag, position = self._varint(position - 1)
            wire = tag & 7
            if wire == BYTES:
                length = data[position]
                position += 1
                if length > 127:
                    length, position = self._varint(position - 1)
                start, position = position, position + length
            elif wire == VARINT:
                start = data[position]
                position += 1
                if start > 127:
                    start, position = self._varint(position - 1)
            elif wire in (FIXED32, FIXED64):
                start, position = position, position + (4 if wire == FIXED32 else 8)
            else:
                raise self.error(f"is damaged (wire type {wire})")
            if position > end:
                raise self.error("is cut off or damaged (a field goes past its message)")
            yield tag, start, position

    def _parts(self, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield each field of a message: its number, where it begins, and where its content begins and ends.

        Of a varint the content is its value, given as the beginning.
        """
        for tag, first, last in self._fields(position, end):
            yield tag >> 3, position, first, last
            position = last


def text_field(number: int, text: str) -> bytes:
    """Write a field that is a text."""
    return message_field(number, text.encode())


def message_field(number: int, content: bytes) -> bytes:
    """Write a field that is a message, or bytes."""
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def number_field(number: int, value: int) -> bytes:
    """Write a field that is a whole number, of 0 or more."""
    return _varint(number << 3 | VARINT) + _varint(value)


def packed_field(number: int, values: Iterable[int]) -> bytes:
    """Write a field of whole numbers of 64 bits, packed."""
    return message_field(number, b"".join(_varint(value & (1 << 64) - 1) for value in values))


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])

"""Weights of 5 and 6 bits, joined of their planes before ONNX Runtime sees the graph.

A graph joins them by nodes on constants (export/edgelm_export/packed_operators.py), which any ONNX Runtime computes
when it loads the graph; but it keeps what each of them gives until all are computed, nine bytes a weight
(docs/results/quantization.md). Here one weight is joined after the other, and one byte is left of each.
Source: the messages of onnx/onnx.proto3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.planes import LOWER_BITS, PLANES, UPPER_BITS, joined
from edgelm.files.protobuf_wire import VARINT, message_field, number_field, text_field
from edgelm.package.onnx_walk import GraphWalk

Bytes = NDArray[np.uint8]

_JOIN = b"BitwiseOr"
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # fields: of the model, and of the graph
_NODE_OUTPUT = 2
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _PLACE = 1, 2, 8, 9, 13, 14  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_UINT8, _IN_A_FILE = 2, 1  # of TensorProto.DataType and DataLocation


def join_planes(graph: bytes, path: Path, most: int) -> tuple[bytes, dict[str, Bytes]]:
    """Return a graph that needs no planes, and uint8 [N, blocks, block_size] for each initializer that it has instead.

    graph: the content of `path`, as it was walked; what it has in files lies beside that. most: the bytes that all
    joined weights may have together.

    Raises:
        PackageError: they would have more, or a file cannot be read.
    """
    if _JOIN not in graph:  # nearly all
        return graph, {}
    return _Joining(graph, path).join(most)


@dataclass(kw_only=True)
class _Plane:
    """An initializer whose name is that of a plane: its shape, and where it lies."""

    type_: int = 0
    dims: list[int] = field(default_factory=list)
    raw: bytes = b""
    file: str = ""
    offset: int = 0

    def read(self, folder: Path) -> Bytes:
        if not self.file:
            return np.frombuffer(self.raw, np.uint8).reshape(self.dims)
        # Not mapped: its pages would count as this process's memory.
        values = np.fromfile(folder / self.file, np.uint8, math.prod(self.dims), offset=self.offset)
        return values.reshape(self.dims)


class _Joining(GraphWalk):
    def __init__(self, graph: bytes, path: Path) -> None:
        super().__init__(graph, path)
        self._planes: dict[str, _Plane] = {}

    def join(self, most: int) -> tuple[bytes, dict[str, Bytes]]:
        model: list[bytes] = []
        weights: dict[str, Bytes] = {}
        for number, whole, start, end in self._parts(0, len(self._data)):
            if number != _GRAPH:
                model.append(whole)
                continue
            parts = [(self._name(field, first, last), part) for field, part, first, last in self._parts(start, end)]
            weights = self._weights(most)
            planes = {f"{name}.{plane}" for name in weights for plane in PLANES}
            gone = weights.keys() | planes
            kept = [part for name, part in parts if name not in gone and name.rpartition(".")[0] not in planes]
            kept += [self._initializer(name, weight.shape) for name, weight in weights.items()]
            model.append(message_field(_GRAPH, b"".join(kept)))
        return b"".join(model), weights

    def _name(self, field: int, start: int, end: int) -> str:
        """Return what a field of the graph defines: a node's output, an initializer, which is noted; else nothing."""
        if field == _INITIALIZER:
            return self._note(start, end)
        outputs = self._parts(start, end) if field == _NODE else ()
        return next((self._label(first, last) for number, _, first, last in outputs if number == _NODE_OUTPUT), "")

    def _note(self, start: int, end: int) -> str:
        """Note an initializer that may be a plane; return its name."""
        name, plane = "", _Plane()
        for tag, first, last in self._fields(start, end):
            number = tag >> 3
            if number == _NAME:
                name = self._label(first, last)
            elif number == _DIMS:
                plane.dims += [first] if tag & 7 == VARINT else self._varints(first, last)
            elif number == _TYPE:
                plane.type_ = first
            elif number == _EXTERNAL:
                entry = {part >> 3: self._label(a, b) for part, a, b in self._fields(first, last)}
                if entry[_KEY] == "location":
                    plane.file = entry[_VALUE]
                elif entry[_KEY] == "offset":
                    plane.offset = int(entry[_VALUE])
            elif number == _RAW:
                plane.raw = bytes(self._data[first:last])
        if (plane.raw or plane.file) and plane.type_ == _UINT8 and name.endswith(PLANES):
            self._planes[name] = plane
        return name

    def _weights(self, most: int) -> dict[str, Bytes]:
        """Join the planes that there are, each of which fits the other."""
        pairs = {}
        for name in {name.rpartition(".")[0]: None for name in self._planes}:
            upper, lower = (self._planes.get(f"{name}.{plane}") for plane in PLANES)
            if upper is not None and lower is not None and (bits := _bits(upper.dims, lower.dims)):
                pairs[name] = (upper, lower, bits)
        if (total := sum(2 * math.prod(upper.dims) for upper, _, _ in pairs.values())) > most:
            raise self.error(f"joins weights of {total} bytes, where its files allow {most}")
        try:
            return {
                name: joined(upper.read(self._path.parent), lower.read(self._path.parent), bits)
                for name, (upper, lower, bits) in pairs.items()
            }
        except (OSError, ValueError, MemoryError) as error:
            raise self.error(f"has weights that cannot be read ({error})") from error

    def _initializer(self, name: str, shape: tuple[int, ...]) -> bytes:
        """Write a TensorProto whose data ONNX Runtime is given: external, wherever it says."""
        place = text_field(_KEY, "location") + text_field(_VALUE, self._path.name)
        content = b"".join(number_field(_DIMS, size) for size in shape)
        content += number_field(_TYPE, _UINT8) + text_field(_NAME, name)
        content += message_field(_EXTERNAL, place) + number_field(_PLACE, _IN_A_FILE)
        return message_field(_INITIALIZER, content)


def _bits(upper: Sequence[int], lower: Sequence[int]) -> int:
    """Return the bits of the integers that lie in two planes of these shapes; 0 where there are none."""
    if len(upper) == len(lower) == 4 and upper[:3] == lower[:3] and upper[2] == 1:
        for bits, below in LOWER_BITS.items():
            if upper[3] * below == lower[3] * UPPER_BITS > 0:
                return bits
    return 0

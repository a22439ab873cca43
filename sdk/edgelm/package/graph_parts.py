"""GraphParts: a graph taken apart into its nodes and tensors, to look at them or to give ONNX Runtime others.

Source: the messages of onnx/onnx.proto3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgelm.files.protobuf_wire import VARINT, message_field, number_field, text_field
from edgelm.package.onnx_walk import GraphWalk

FLOAT32, UINT8, INT8, INT64, FLOAT16, BFLOAT16 = 1, 2, 3, 7, 10, 16  # TensorProto.DataType
_GRAPH = 7  # a field of the model
_NODE, _INITIALIZER = 1, 5  # fields of a graph
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TENSOR = 1, 3, 5
_DIMS, _TYPE, _NAME, _RAW, _EXTERNAL, _PLACE = 1, 2, 8, 9, 13, 14  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_IN_A_FILE = 1  # TensorProto.DataLocation


@dataclass(kw_only=True)
class Node:
    """A node: its operator, the names of what it takes and gives, and where its attributes begin and end."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it gives first; edgelm's own graphs name a node by that."""
        return self.outputs[0] if self.outputs else ""


@dataclass(kw_only=True)
class StoredTensor:
    """An initializer: its shape, and where it lies."""

    name: str = ""
    type_: int = 0
    dims: list[int] = field(default_factory=list)
    raw: bytes | memoryview = b""
    file: str = ""
    offset: int = 0

    def read(self, folder: Path, dtype: DTypeLike) -> NDArray[Any]:
        """Read it; `folder` is the graph's.

        Raises:
            OSError, ValueError: it has other bytes than its shape says, or the file cannot be read.
        """
        if not self.file:
            return np.frombuffer(self.raw, dtype).reshape(self.dims).copy()  # a view would keep the whole graph
        # Not mapped: its pages would count as this process's memory.
        return np.fromfile(folder / self.file, dtype, math.prod(self.dims), offset=self.offset).reshape(self.dims)


class GraphParts(GraphWalk):
    """A graph as `path` has it, taken apart. Its parts, the fields of the graph, are numbered in their order.

    Nothing is copied: a graph of another program's may hold all of its weights.

    Raises:
        PackageError: it is damaged.
    """

    def __init__(self, graph: bytes, path: Path) -> None:
        super().__init__(graph, path)
        self.folder = path.parent
        self._view = memoryview(graph)
        self._around: list[memoryview] = []
        self._places: list[tuple[int, int, int, int]] = []
        for number, place, start, end in self._parts(0, len(graph)):
            if number == _GRAPH:
                self._places += self._parts(start, end)
            else:
                self._around.append(self._view[place:end])

    def nodes(self, *marks: bytes) -> Iterable[tuple[int, Node]]:
        """Yield the nodes in whose bytes one of some marks is; all without."""
        for i, start, end in self._marked(_NODE, marks):
            node = Node()
            for tag, first, last in self._fields(start, end):
                if tag >> 3 == _NODE_INPUT:
                    node.inputs.append(self._label(first, last))
                elif tag >> 3 == _NODE_OUTPUT:
                    node.outputs.append(self._label(first, last))
                elif tag >> 3 == _NODE_OPERATOR:
                    node.operator = self._label(first, last)
                elif tag >> 3 == _NODE_ATTRIBUTE:
                    node.attributes.append((first, last))
            yield i, node

    def integers(self, node: Node) -> dict[str, int]:
        """Return the attributes of a node that are whole numbers, by name."""
        found: dict[str, int] = {}
        for start, end in node.attributes:
            values = {tag >> 3: (first, last) for tag, first, last in self._fields(start, end)}
            if _ATTRIBUTE_NAME in values and _ATTRIBUTE_INTEGER in values:
                found[self._label(*values[_ATTRIBUTE_NAME])] = values[_ATTRIBUTE_INTEGER][0]
        return found

    def tensors(self, *marks: bytes) -> Iterable[tuple[int, StoredTensor]]:
        """Yield the initializers in whose bytes one of some marks is; all without."""
        for i, start, end in self._marked(_INITIALIZER, marks):
            yield i, self._tensor(start, end)

    def constant(self, node: Node) -> StoredTensor | None:
        """Return the tensor that a node has as its attribute, as a Constant does; None: it has none."""
        for start, end in node.attributes:
            for tag, first, last in self._fields(start, end):
                if tag >> 3 == _ATTRIBUTE_TENSOR:
                    return self._tensor(first, last)
        return None

    def _marked(self, wanted: int, marks: tuple[bytes, ...]) -> Iterable[tuple[int, int, int]]:
        for i, (number, place, start, end) in enumerate(self._places):
            if number == wanted and (not marks or any(self._data.find(mark, place, end) >= 0 for mark in marks)):
                yield i, start, end

    def _tensor(self, start: int, end: int) -> StoredTensor:
        tensor = StoredTensor()
        for tag, first, last in self._fields(start, end):
            number = tag >> 3
            if number == _NAME:
                tensor.name = self._label(first, last)
            elif number == _DIMS:
                tensor.dims += [first] if tag & 7 == VARINT else self._varints(first, last)
            elif number == _TYPE:
                tensor.type_ = first
            elif number == _EXTERNAL:
                entry = {part >> 3: self._label(a, b) for part, a, b in self._fields(first, last)}
                if entry[_KEY] == "location":
                    tensor.file = entry[_VALUE]
                elif entry[_KEY] == "offset":
                    tensor.offset = int(entry[_VALUE])
            elif number == _RAW:
                tensor.raw = self._view[first:last]
        return tensor

    def rebuilt(self, gone: Iterable[int], given: Mapping[str, tuple[int, tuple[int, ...]]]) -> bytes:
        """Write the graph without some of its parts, and with initializers whose data ONNX Runtime will be given.

        given: name -> data type and shape.
        """
        left_out = frozenset(gone)
        parts: list[bytes | memoryview] = []
        parts += [self._view[place:end] for i, (_, place, _, end) in enumerate(self._places) if i not in left_out]
        parts += [self._placeholder(name, type_, shape) for name, (type_, shape) in given.items()]
        return b"".join([*self._around, message_field(_GRAPH, b"".join(parts))])

    def _placeholder(self, name: str, type_: int, shape: tuple[int, ...]) -> bytes:
        """Write a TensorProto that lies in a file, wherever it says."""
        place = text_field(_KEY, "location") + text_field(_VALUE, self._path.name)
        content = b"".join(number_field(_DIMS, size) for size in shape)
        content += number_field(_TYPE, type_) + text_field(_NAME, name)
        content += message_field(_EXTERNAL, place) + number_field(_PLACE, _IN_A_FILE)
        return message_field(_INITIALIZER, content)

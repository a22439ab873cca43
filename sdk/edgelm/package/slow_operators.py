"""Settings of a graph's operators that make it many times slower on a CPU: found in the file, without running it."""

from __future__ import annotations

from pathlib import Path

from edgelm.files.protobuf_wire import BYTES, VARINT
from edgelm.package.graph_file import read_graph
from edgelm.package.onnx_walk import GraphWalk

_FLOATS = {1, 10, 16}  # TensorProto.DataType: float32, float16, bfloat16
_ZERO_POINTS = 3  # the place of MatMulNBits' zero points among its inputs

_MODEL_GRAPH = 7 << 3 | BYTES
_GRAPH_NODE, _GRAPH_TENSOR = 1 << 3 | BYTES, 5 << 3 | BYTES
_NODE_INPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 1 << 3 | BYTES, 4 << 3 | BYTES, 5 << 3 | BYTES
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER = 1 << 3 | BYTES, 3 << 3 | VARINT
_TENSOR_TYPE, _TENSOR_NAME = 2 << 3 | VARINT, 8 << 3 | BYTES


def slow_operators(path: Path) -> list[str]:
    """Describe what of a graph is slow on a CPU; `path` is the graph's file.

    The factors were measured with ONNX Runtime 1.32 (docs/results/graph-and-settings.md).

    Raises:
        PackageError: the graph is broken.
    """
    graph, _ = read_graph(path)
    walk = _Products(graph, path)
    walk.model()
    found = []
    if walk.inexact:
        found.append(
            f"{walk.inexact} products of 8 bits have no accuracy_level 4, and are about 19 times slower than with it."
        )
    if walk.inexact_experts:
        found.append(
            f"{walk.inexact_experts} layers have experts of 4 bits without accuracy_level 4, and are about 2 times "
            "slower than with it: export the model again, for ONNX Runtime 1.31 or newer."
        )
    floating = sum(name in walk.float_tensors for name in walk.zero_points)
    if floating:
        found.append(f"{floating} products have float zero points, and are about 31 times slower than with none.")
    return found


class _Products(GraphWalk):
    """What a graph's products by packed weights, and its experts, are set to; it was walked before, and is whole."""

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(data, path)
        self.inexact = self.inexact_experts = 0
        self.zero_points: list[bytes] = []
        self.float_tensors: set[bytes] = set()

    def model(self) -> None:
        for tag, start, end in self._fields(0, len(self._data)):
            if tag == _MODEL_GRAPH:
                for inner, first, last in self._fields(start, end):
                    if inner == _GRAPH_NODE:
                        self._node(first, last)
                    elif inner == _GRAPH_TENSOR:
                        self._tensor(first, last)

    def _node(self, start: int, end: int) -> None:
        operator, inputs, attributes = b"", [], []
        for tag, first, last in self._fields(start, end):
            if tag == _NODE_OPERATOR:
                operator = self._data[first:last]
            elif tag == _NODE_INPUT:
                inputs.append(self._data[first:last])
            elif tag == _NODE_ATTRIBUTE:
                attributes.append((first, last))
        if operator not in (b"MatMulNBits", b"QMoE"):
            return
        places = (_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER)
        settings = dict(self._named(first, last, *places) for first, last in attributes)
        if operator == b"QMoE":
            if settings.get(b"expert_weight_bits", 4) == 4 and settings.get(b"accuracy_level", 0) != 4:
                self.inexact_experts += 1
            return
        if settings.get(b"bits", 4) == 8 and settings.get(b"accuracy_level", 0) != 4:
            self.inexact += 1
        if len(inputs) > _ZERO_POINTS and inputs[_ZERO_POINTS]:
            self.zero_points.append(inputs[_ZERO_POINTS])

    def _tensor(self, start: int, end: int) -> None:
        name, type_ = self._named(start, end, _TENSOR_NAME, _TENSOR_TYPE)
        if type_ in _FLOATS:
            self.float_tensors.add(name)

    def _named(self, start: int, end: int, name_tag: int, number_tag: int) -> tuple[bytes, int]:
        """Return the name and the number of a message."""
        name, number = b"", 0
        for tag, first, last in self._fields(start, end):
            if tag == name_tag:
                name = self._data[first:last]
            elif tag == number_tag:
                number = first
        return name, number

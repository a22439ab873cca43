"""The graph of a package with places for adapters: derived from the package's own, on the wire level.

Beside a product y = W x, y + ((x Aᵀ) · gate) B is computed. A, B and the gate are inputs, so that a call chooses its
adapters, and loading another one changes no graph. Shapes: B batch, T tokens, D and N what the product takes and gives,
D in G blocks of K; C components: pairs of a row of A and a row of B, rank times as many as the projections that the
product fuses.

What an adapter gives is added behind a bias, which ONNX Runtime joins to its product, but for one that it joins to the
gelu behind it: without an adapter the bits are then those of the package alone. (Sums that it joins to a layer norm
come apart, which changes the last bit.)

A row's sums have the same bits in any company, as those of the package's own products. ONNX Runtime's product of two
inputs adds up blocks of 128 or more, as many as suit the number of rows, of columns and of threads, and one row takes a
path of its own; so x Aᵀ is given to it in blocks of at most 128, and no product has the factor one.
Source: the messages of onnx/onnx.proto3; com.microsoft.FusedMatMul; onnxruntime/core/mlas/lib/sgemm.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edgelm.files.protobuf_wire import BYTES, FIXED32, message_field, number_field, packed_field, text_field
from edgelm.package.graph_parts import FLOAT32, INT64
from edgelm.package.onnx_walk import GraphWalk

# What the exporter makes one product of (edgelm_export/decoder.py), by the product's name.
FUSED_PROJECTIONS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
# Behind the name of a product's input: the same with the sums of its blocks, which are multiplied where a weight has
# offsets (edgelm_export/layers/packed_operators.py).
WITH_SUMS = ".with_sums"
# Of each of the two thin products: any but one, and a power of two, which is exact.
FACTOR = 0.5
# As many values are always added up in one go, one after the other.
SUM_BLOCK = 128

_EXPERTS = ".experts."
_PRODUCTS = ("MatMul", "MatMulNBits")
_OUTPUT, _BIASED = ".output", ".biased"  # behind a product's name: what it gives, and that with a bias
_GRAPH, _NODE, _INITIALIZER, _INPUT = 7, 1, 5, 11  # fields: of the model, and of the graph
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_SHAPE, _FIRST_AXIS = "adapters.shape", "adapters.first_axis"
_FLOAT, _INT = 1, 2  # of AttributeProto.type


def parts_of(product: str) -> tuple[str, ...]:
    """Return the projections that a product computes, by their canonical names."""
    parent, _, last = product.rpartition(".")
    return tuple(f"{parent}.{part}" for part in FUSED_PROJECTIONS.get(last, (last,)))


def block_of(width: int) -> int:
    """Return the K in which a product's D is summed up: the largest that divides it, up to SUM_BLOCK."""
    return next(size for size in range(min(width, SUM_BLOCK), 0, -1) if width % size == 0)


def gate_name(parts: int) -> str:
    """Name the gate [B, 1, C] of products of so many projections."""
    return f"adapters.gate.{parts}"


def matrix_names(product: str) -> tuple[str, str]:
    """Name the inputs A [C, G, K] and B [C, N] of a product."""
    return f"{product}.lora_A", f"{product}.lora_B"


def products_of(graph: bytes, path: Path) -> frozenset[str]:
    """Return the names of the products with a weight in a graph that was walked; `path` is what errors name.

    Those of experts are left out: they multiply some of the tokens, in another order.
    """
    return frozenset(product for product in _Rewriting(graph, path, {}).products() if _EXPERTS not in product)


def with_adapters(graph: bytes, path: Path, products: Mapping[str, int]) -> bytes:
    """Return the graph with places for adapters beside some of its products, by name, with the D of each."""
    return _Rewriting(graph, path, products).rewrite()


class _Labels(NamedTuple):
    """The texts of a node that tell what it is; the operator is the last of a list."""

    operators: list[str]
    inputs: list[str]
    outputs: list[str]


class _Rewriting(GraphWalk):
    """Write a graph with places for adapters beside `adapted`: products, by name, with the D of each."""

    def __init__(self, graph: bytes, path: Path, adapted: Mapping[str, int]) -> None:
        super().__init__(graph, path)
        self._adapted = adapted
        self._sums: dict[str, str] = {}  # products, by the value that their adapters are added to

    def products(self) -> list[str]:
        """Return the products with a weight."""
        graphs = [(start, end) for number, _, start, end in self._parts(0, len(self._data)) if number == _GRAPH]
        return [product for start, end in graphs for product in _input_of(self._nodes(start, end))]

    def rewrite(self) -> bytes:
        model: list[bytes] = []
        for number, place, start, end in self._parts(0, len(self._data)):
            is_graph = number == _GRAPH
            model.append(message_field(_GRAPH, self._graph(start, end)) if is_graph else self._data[place:end])
        return b"".join(model)

    def _graph(self, start: int, end: int) -> bytes:
        nodes = list(self._nodes(start, end))
        input_of, self._sums = _input_of(nodes), self._sums_of(nodes)
        labels = iter(nodes)
        fields = [
            self._node(place, first, last, next(labels)) if number == _NODE else self._data[place:last]
            for number, place, first, last in self._parts(start, end)
        ]
        for sum_, product in sorted(self._sums.items()):
            fields += _beside(product, input_of[product], self._adapted[product], sum_)
        if self._adapted:
            fields += _shared(self._adapted)
        return b"".join(fields)

    def _nodes(self, start: int, end: int) -> Iterator[_Labels]:
        return (self._labels(first, last) for number, _, first, last in self._parts(start, end) if number == _NODE)

    def _sums_of(self, nodes: list[_Labels]) -> dict[str, str]:
        """Return the products that are adapted, by what they give, or that with a bias."""
        read_by_gelu = {node.inputs[0] for node in nodes if node.operators[-1:] == ["Gelu"] and node.inputs}
        sums = {node.outputs[0] for node in nodes if node.operators[-1:] == ["Add"] and node.outputs}
        biased = sums - read_by_gelu
        return {
            f"{product}{_BIASED if f'{product}{_BIASED}' in biased else _OUTPUT}": product for product in self._adapted
        }

    def _labels(self, start: int, end: int) -> _Labels:
        labels = _Labels([], [], [])
        for tag, first, last in self._fields(start, end):
            if tag == _NODE_INPUT << 3 | BYTES:
                labels.inputs.append(self._label(first, last))
            elif tag == _NODE_OUTPUT << 3 | BYTES:
                labels.outputs.append(self._label(first, last))
            elif tag == _NODE_OPERATOR << 3 | BYTES:
                labels.operators.append(self._label(first, last))
        return labels

    def _node(self, place: int, start: int, end: int, labels: _Labels) -> bytes:
        """Return a node's field, which begins at `place`; what adapters add to gets another name."""
        if not labels.outputs or labels.outputs[0] not in self._sums:
            return self._data[place:end]
        base = _base_of(labels.outputs[0])
        parts = [
            text_field(number, base) if number in (_NODE_OUTPUT, _NODE_NAME) else self._data[at:last]
            for number, at, _, last in self._parts(start, end)
        ]
        return message_field(_NODE, b"".join(parts))


def _input_of(nodes: Iterable[_Labels]) -> dict[str, str]:
    """Return what each product with a weight multiplies, by the product's name."""
    found: dict[str, str] = {}
    for operators, inputs, outputs in nodes:
        if operators and inputs and outputs and operators[-1] in _PRODUCTS and outputs[0].endswith(_OUTPUT):
            found[outputs[0].removesuffix(_OUTPUT)] = inputs[0].removesuffix(WITH_SUMS)
    return found


def _base_of(sum_: str) -> str:
    return f"{sum_}.base"


def _gate_of(product: str) -> str:
    return gate_name(len(parts_of(product)))


def _shared(products: Mapping[str, int]) -> list[bytes]:
    """Return what the products have in common, as fields of the graph: gates, the shape [B, T, -1] of rows, numbers."""
    gates = [message_field(_INPUT, _value_info(name, 3)) for name in sorted({_gate_of(name) for name in products})]
    return [
        *gates,
        _node("Shape", ["input_ids"], "adapters.rows"),
        _node("Concat", ["adapters.rows", "adapters.rest"], _SHAPE, attributes=_integer("axis", 0)),
        _constant("adapters.rest", [-1]),
        _constant(_FIRST_AXIS, [0]),
        *(
            _constant(_blocks_of(width), [-1, width // block_of(width), block_of(width)])
            for width in sorted({*products.values()})
        ),
    ]


def _beside(product: str, hidden: str, width: int, sum_: str) -> list[bytes]:
    """Return the nodes and inputs beside one product, as fields of the graph."""
    a, b = matrix_names(product)
    names = ("lora_blocks", "lora_sums", "lora_sum", "lora_thin", "lora_gated", "lora_output")
    blocks, sums, total, thin, gated, learned = (f"{product}.{name}" for name in names)
    on_blocks = b"".join(_integer(name, 1) for name in ("transB", "transBatchA", "transBatchB"))
    factor = _attribute("alpha", bytes([2 << 3 | FIXED32]) + struct.pack("<f", FACTOR), _FLOAT)
    return [
        _node("Reshape", [hidden, _blocks_of(width)], blocks),
        _node("FusedMatMul", [blocks, a], sums, "com.microsoft", factor + on_blocks),  # [G, B T, C]
        _node("ReduceSum", [sums, _FIRST_AXIS], total, attributes=_integer("keepdims", 0)),
        _node("Reshape", [total, _SHAPE], thin),
        _node("Mul", [thin, _gate_of(product)], gated),
        _node("FusedMatMul", [gated, b], learned, "com.microsoft", factor),
        _node("Add", [_base_of(sum_), learned], sum_),
        message_field(_INPUT, _value_info(a, 3)),
        message_field(_INPUT, _value_info(b, 2)),
    ]


def _blocks_of(width: int) -> str:
    return f"adapters.blocks.{width}"


def _node(operator: str, inputs: list[str], output: str, domain: str = "", attributes: bytes = b"") -> bytes:
    content = b"".join(text_field(_NODE_INPUT, name) for name in inputs) + text_field(_NODE_OUTPUT, output)
    content += text_field(_NODE_NAME, output) + text_field(_NODE_OPERATOR, operator) + attributes
    return message_field(_NODE, content + (text_field(_NODE_DOMAIN, domain) if domain else b""))


def _integer(name: str, value: int) -> bytes:
    return _attribute(name, number_field(3, value), _INT)


def _attribute(name: str, value: bytes, type_: int) -> bytes:
    """Write an AttributeProto: name 1, its value, type 20."""
    return message_field(_NODE_ATTRIBUTE, text_field(1, name) + value + number_field(20, type_))


def _constant(name: str, values: list[int]) -> bytes:
    """Write an initializer, a TensorProto: dims 1, data_type 2, int64_data 7 (packed), name 8."""
    content = number_field(1, len(values)) + number_field(2, INT64) + packed_field(7, values) + text_field(8, name)
    return message_field(_INITIALIZER, content)


def _value_info(name: str, dimensions: int) -> bytes:
    """Write a ValueInfoProto (name 1, type 2) of a float tensor (tensor_type 1) with dimensions of any size."""
    shape = message_field(2, message_field(1, b"") * dimensions)
    return text_field(1, name) + message_field(2, message_field(1, number_field(1, FLOAT32) + shape))

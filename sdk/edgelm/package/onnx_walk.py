"""The walk over an ONNX file before ONNX Runtime sees it: bounded, on the wire level, without the onnx package.

ONNX Runtime trusts a model: it opens whatever file an initializer points to, loads libraries of custom operators, runs
compiled blobs (EPContext) and believes dimensions. So a graph is walked first, field by field, and what a decoder does
not need is refused. Source: the messages of onnx/onnx.proto3 (IR version 13) and protobuf's wire format.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgelm.errors import PackageError
from edgelm.files.protobuf_wire import BYTES, FIXED32, FIXED64, VARINT, ProtobufWalk
from edgelm.package.onnx_operators import OPERATORS

# A layer has 360 to 740 fields in most packages, and 1,090 where 5-bit weights are put together of planes: a decoder of
# 88 layers, which models of 123 billion weights have, has up to 96,000.
# docs/results/trust.md has what the worst graph costs.
MAX_FIELDS = 3 << 15
# Experts with products of their own have 107 fields each: 410,000 in a model of 26 billion weights. So weights allow
# for more: hashing so many bytes takes longer than 20 fields.
_BYTES_A_FIELD = 1 << 14
MOST_FIELDS = 1 << 20
_MAX_REMEMBERED = 256  # bytes of an attribute
_MAX_DEPTH = 8  # of graphs in If, Loop and Scan
_MAX_DIMENSIONS = 8
MAX_BYTES = 1 << 31  # protobuf's own limit
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,17}")
_EXTERNAL = 1  # TensorProto.DataLocation
# At bytes 4 to 8 of ONNX Runtime's own format. A file can be both that and ONNX, with another graph in each.
_OTHER_FORMAT = b"ORTM"

# TensorProto.DataType -> bits of one element. A string has no fixed size.
_STRING = 8
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}


def _tags(*fields: tuple[int, int]) -> frozenset[int]:
    return frozenset(number << 3 | wire for number, wire in fields)


def _texts(*numbers: int) -> frozenset[int]:
    return _tags(*((number, BYTES) for number in numbers))


# Fields that are passed over: they name, describe, or hold plain numbers. All that is in no table is refused, functions
# of the model (ModelProto 25), training (20), sparse tensors and devices among it.
_MODEL_GRAPH, _MODEL_OPSET = 7 << 3 | BYTES, 8 << 3 | BYTES
_MODEL_PLAIN = _tags((1, VARINT), (5, VARINT)) | _texts(2, 3, 4, 6, 14)
_GRAPH_NODE, _GRAPH_TENSOR = 1 << 3 | BYTES, 5 << 3 | BYTES
_GRAPH_PLAIN = _texts(2, 10, 11, 12, 13, 14, 16)
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4 << 3 | BYTES, 5 << 3 | BYTES, 7 << 3 | BYTES
_NODE_PLAIN = _texts(1, 2, 3, 6, 9)
_ATTRIBUTE_TENSOR = 5 << 3 | BYTES
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = _texts(5, 10), _texts(6, 11)
_ATTRIBUTE_PLAIN = _texts(1, 4, 7, 8, 9, 13, 14, 15) | _tags((2, FIXED32), (7, FIXED32), (3, VARINT), (8, VARINT))
_ATTRIBUTE_PLAIN |= _tags((20, VARINT))
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_PLACE = _tags((1, VARINT), (1, BYTES)), 2 << 3 | VARINT, 14 << 3 | VARINT
_TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_STRINGS = 9 << 3 | BYTES, 13 << 3 | BYTES, 6 << 3 | BYTES
# float, int32, int64, double and uint64 data, packed or one by one. The fewest bits that an element takes on the wire
# are a float's 32, a double's 64, and a varint's 8, which holds up to two elements of 4 bits or four of 2.
_TENSOR_NUMBERS = _tags((4, BYTES), (4, FIXED32), (5, BYTES), (5, VARINT), (7, BYTES), (7, VARINT))
_TENSOR_NUMBERS |= _tags((10, BYTES), (10, FIXED64), (11, BYTES), (11, VARINT))
_TENSOR_PLAIN = _texts(8, 12, 16)


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph uses: operator domains with their versions, operators as (domain, name), and external files."""

    opsets: Mapping[str, int]
    operators: frozenset[tuple[str, str]]
    external_files: frozenset[str]


def walk_onnx(data: bytes | mmap.mmap, path: Path, external_sizes: Mapping[str, int]) -> GraphFacts:
    """Check an ONNX model within bounds of depth, size and counts.

    data: the content of `path`, which errors name. external_sizes: the files that its tensors may lie in, with their
    sizes in bytes.

    Raises:
        PackageError: the model is broken, or has something that no decoder needs: an operator that is not in
            `OPERATORS`, functions or sparse tensors, a tensor outside the listed files or of another size than its
            dimensions say.
    """
    walk = _Walk(data, path, external_sizes)
    try:
        walk.model()
    except (IndexError, UnicodeDecodeError) as error:
        raise walk.error(f"is cut off or damaged ({error})") from error
    return GraphFacts(
        opsets=walk.opsets, operators=frozenset(walk.operators), external_files=frozenset(walk.external_files)
    )


class GraphWalk(ProtobufWalk):
    """Walk the fields of an ONNX model, `path`'s content, which errors name."""

    def __init__(self, data: bytes | mmap.mmap, path: Path, max_fields: int = MOST_FIELDS) -> None:
        super().__init__(data, max_fields)
        self._path = path

    def error(self, problem: str) -> PackageError:
        """Make the error of a broken model."""
        return PackageError(f"{self._path} {problem}. Export or download the package again.")

    def _text(self, start: int, end: int) -> str:
        if end - start > 256:
            raise self.error(f"has a name of {end - start} bytes")
        return self._data[start:end].decode("utf-8")

    def _label(self, start: int, end: int) -> str:
        """Read what is compared with names of ours, and need not be a text: others stay in the graph as they are."""
        return self._data[start:end].decode("utf-8", "replace")

    def _varints(self, start: int, end: int) -> list[int]:
        values: list[int] = []
        while start < end and len(values) <= _MAX_DIMENSIONS:
            value, start = self._varint(start)
            values.append(value)
        if start > end:
            raise self.error("is cut off or damaged (a number goes past its field)")
        return values


class _Walk(GraphWalk):
    def __init__(self, data: bytes | mmap.mmap, path: Path, external_sizes: Mapping[str, int]) -> None:
        more = sum(external_sizes.values()) // _BYTES_A_FIELD
        super().__init__(data, path, min(MAX_FIELDS + more, MOST_FIELDS))
        self._external_sizes = external_sizes
        self.opsets: dict[str, int] = {}
        self.operators: set[tuple[str, str]] = set()
        self.external_files: set[str] = set()
        self._plain_attributes: set[bytes] = set()  # a graph repeats few of them a thousand times

    def model(self) -> None:
        if len(self._data) > MAX_BYTES:
            raise self.error(f"has {len(self._data)} bytes; an ONNX model has at most {MAX_BYTES}")
        if self._data[4:8] == _OTHER_FORMAT:
            raise self.error("has the mark of ONNX Runtime's own format, in which nothing is walked")
        graphs = 0
        for tag, start, end in self._fields(0, len(self._data)):
            if tag == _MODEL_GRAPH:
                graphs += 1
                self._graph(start, end, _MAX_DEPTH)
            elif tag == _MODEL_OPSET:
                self._opset(start, end)
            elif tag not in _MODEL_PLAIN:
                raise self._unknown("model", tag)
        if graphs != 1:
            raise self.error(f"has {graphs} graphs where a model has one")

    def _opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for tag, first, last in self._fields(start, end):
            if tag == 1 << 3 | BYTES:
                domain = self._text(first, last)
            elif tag == 2 << 3 | VARINT:
                version = first
            else:
                raise self._unknown("opset", tag)
        self.opsets[_plain_domain(domain)] = version

    def _graph(self, start: int, end: int, depth: int) -> None:
        if not depth:
            raise self.error(f"nests graphs more than {_MAX_DEPTH} deep")
        for tag, first, last in self._fields(start, end):
            if tag == _GRAPH_NODE:
                self._node(first, last, depth)
            elif tag == _GRAPH_TENSOR:
                self._tensor(first, last)
            elif tag not in _GRAPH_PLAIN:
                raise self._unknown("graph", tag)

    def _node(self, start: int, end: int, depth: int) -> None:
        operator = domain = ""
        for tag, first, last in self._fields(start, end):
            if tag in _NODE_PLAIN:
                continue
            if tag == _NODE_ATTRIBUTE:
                self._node_attribute(first, last, depth)
            elif tag == _NODE_OPERATOR:
                operator = self._text(first, last)
            elif tag == _NODE_DOMAIN:
                domain = _plain_domain(self._text(first, last))
            else:
                raise self._unknown("node", tag)
        if operator not in OPERATORS.get(domain, ()):
            raise self.error(
                f"uses the operator {operator!r} of domain {domain!r}, which is not one that edgelm lets run "
                "(edgelm/package/onnx_operators.py lists them)"
            )
        self.operators.add((domain, operator))

    def _node_attribute(self, start: int, end: int, depth: int) -> None:
        if end - start > _MAX_REMEMBERED:
            self._attribute(start, end, depth)
            return
        content = self._data[start:end]
        if content not in self._plain_attributes and self._attribute(start, end, depth):
            self._plain_attributes.add(content)

    def _attribute(self, start: int, end: int, depth: int) -> bool:
        """Walk an attribute, and tell whether it is plain: without tensors and graphs."""
        plain, tensors = True, 0
        for tag, first, last in self._fields(start, end):
            if tag in _ATTRIBUTE_PLAIN:
                continue
            plain = False
            if tag in _ATTRIBUTE_TENSORS:
                if tag == _ATTRIBUTE_TENSOR:
                    tensors += 1
                if tensors > 1:  # protobuf merges them into one, which nobody has walked
                    raise self.error("has a tensor in two parts in an attribute")
                self._tensor(first, last)
            elif tag in _ATTRIBUTE_GRAPHS:
                self._graph(first, last, depth - 1)
            else:
                raise self._unknown("attribute", tag)
        return plain

    def _tensor(self, start: int, end: int) -> None:
        dims: list[int] = []
        external: dict[bytes, bytes] = {}
        type_ = place = raw_bytes = number_bytes = strings = 0
        self._fields_left -= 1  # checking it takes as long as a field more
        for tag, first, last in self._fields(start, end):
            if tag in _TENSOR_PLAIN:
                continue
            if tag == _TENSOR_EXTERNAL:
                self._external_entry(first, last, external)
            elif tag in _TENSOR_DIMS:
                dims += [first] if tag & 7 == VARINT else self._varints(first, last)
            elif tag == _TENSOR_TYPE:
                type_ = first
            elif tag == _TENSOR_PLACE:
                place = first
            elif tag == _TENSOR_RAW:
                raw_bytes = last - first
            elif tag == _TENSOR_STRINGS:
                strings += 1
            elif tag in _TENSOR_NUMBERS:
                number_bytes += last - first if tag & 7 == BYTES else {FIXED32: 4, FIXED64: 8, VARINT: 1}[tag & 7]
            else:
                raise self._unknown("tensor", tag)
        elements = self._elements(dims)
        if place != _EXTERNAL and (external or place):
            raise self.error("has a tensor that is external and is not")
        if type_ == _STRING:
            if elements != strings or place == _EXTERNAL or raw_bytes:
                raise self.error(f"has a tensor of {elements} strings, and {strings} are there")
            return
        if type_ not in _BITS:
            raise self.error(f"has a tensor of the unknown type {type_}")
        nbytes = -(-elements * _BITS[type_] // 8)
        if place == _EXTERNAL:
            self._check_external(external, nbytes, dims)
        elif raw_bytes:
            if raw_bytes != nbytes:
                raise self.error(f"has a tensor of dimensions {dims} and {raw_bytes} bytes, not {nbytes}")
        elif elements * min(_BITS[type_], 8) > number_bytes * 8:
            raise self.error(f"has a tensor of dimensions {dims}, and {number_bytes} bytes of numbers")

    def _elements(self, dims: list[int]) -> int:
        # A negative dimension is a varint beyond 2**63.
        if len(dims) > _MAX_DIMENSIONS or (elements := math.prod(dims)) >= 1 << 48 or max(dims, default=0) >= 1 << 48:
            raise self.error(f"has a tensor of the impossible dimensions {dims[: _MAX_DIMENSIONS + 1]}")
        return elements

    def _external_entry(self, start: int, end: int, entries: dict[bytes, bytes]) -> None:
        key = value = b""
        for tag, first, last in self._fields(start, end):
            if tag == 1 << 3 | BYTES:
                key = self._data[first:last]
            elif tag == 2 << 3 | BYTES:
                value = self._data[first:last]
            else:
                raise self._unknown("external data", tag)
        if key in entries:
            raise self.error(f"says twice where a tensor lies ({key[:40]!r})")
        entries[key] = value

    def _check_external(self, entries: dict[bytes, bytes], nbytes: int, dims: list[int]) -> None:
        if not entries.keys() <= {b"location", b"offset", b"length", b"checksum"}:
            raise self.error(f"describes external data by {sorted(entries)[:8]!r}")
        location = entries.get(b"location", b"").decode("utf-8")
        if location not in self._external_sizes:
            raise self.error(
                f"has a tensor in the file {location[:200]!r}, which is not one of the package's files: "
                f"{', '.join(sorted(self._external_sizes)) or 'none'}"
            )
        offset, length = entries.get(b"offset", b"0"), entries.get(b"length", b"%d" % nbytes)
        if not _NUMBER.fullmatch(offset) or not _NUMBER.fullmatch(length):
            raise self.error(f"has a tensor at offset {offset[:40]!r} of length {length[:40]!r}")
        if int(length) != nbytes:
            raise self.error(f"has a tensor of dimensions {dims} and {int(length)} bytes in {location}, not {nbytes}")
        if int(offset) + nbytes > self._external_sizes[location]:
            raise self.error(
                f"has a tensor of {nbytes} bytes at {int(offset)} in {location}, which has "
                f"{self._external_sizes[location]} bytes"
            )
        self.external_files.add(location)

    def _unknown(self, message: str, tag: int) -> PackageError:
        return self.error(f"has field {tag >> 3} (wire type {tag & 7}) in a {message}, which no decoder needs")


def _plain_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain  # two names of one

"""RotationTables: cosines and sines of positions, made as far as texts reach.

A graph makes them of its frequencies when it is loaded, for its whole context (edgelm_export/layers/stack.py): 67 MB
for Gemma 3 270M. On a CPU it gets tables of ours in their place, whose rows are made when a text comes to them: a page
that nothing was written to takes no memory.
"""

from __future__ import annotations

import math
import mmap
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.rope import LARGEST_TABLE
from edgelm.errors import OutOfMemoryError
from edgelm.files.protobuf_wire import message_field, number_field, text_field
from edgelm.package.graph_parts import FLOAT32, GraphParts, Node, StoredTensor
from edgelm.runtime.thread_pools import new_session

# What the nodes give that make tables; the last are the tables.
_MAKER = re.compile(r"(model\.rope\.[a-z]+)\.(positions|column|products|angles(\.(cos|sin)(\.scaled)?)?)")
_MARK, _CONSTANT = b"model.rope.", b"constant.float32."  # in the names of the nodes and tensors to look at
# What takes tables beside what depends on the text. Of constants alone (a Cast, where a graph was converted), ONNX
# Runtime computes when it loads the graph, and reads what stands for a table in the graph.
_READERS = {"GroupQueryAttention", "RotaryEmbedding", "Gather"}
_ROWS = 256  # made at once
_VECTOR = 64  # numbers: twice the longest vector that ONNX Runtime computes with


class _Turns:
    """Cosines and sines as ONNX Runtime computes them; numpy's differ in the last bit."""

    def __init__(self, runtime: Any) -> None:
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1  # no threads of its own, which a fork would not have
        self._session = new_session(runtime, _turns_graph(), options, ["CPUExecutionProvider"])

    def of(self, angles: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        """Return the `cos` or `sin` of angles, of any shape."""
        # In whole vectors of the processor's, as all of a table but its end: what is left over is computed another way.
        padded = np.zeros(-(-angles.size // _VECTOR) * _VECTOR, np.float32)
        padded[: angles.size] = angles.ravel()
        turns: NDArray[np.float32] = self._session.run([name], {"angles": padded})[0]
        return turns[: angles.size].reshape(angles.shape)


def _turns_graph() -> bytes:
    """Write the model that has these two operators. Source: the messages of onnx/onnx.proto3."""
    shape = message_field(2, message_field(1, text_field(2, "count")))  # TypeProto.Tensor.shape, one dimension
    type_ = message_field(2, message_field(1, number_field(1, FLOAT32) + shape))  # ValueInfoProto.type
    graph = text_field(2, "turns") + message_field(11, text_field(1, "angles") + type_)
    for name in ("cos", "sin"):
        graph += message_field(1, text_field(1, "angles") + text_field(2, name) + text_field(4, name.title()))
        graph += message_field(12, text_field(1, name) + type_)
    return number_field(1, 10) + message_field(7, graph) + message_field(8, number_field(2, 21))


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """The tables of one kind of layer, [G * C, R/2] by name, and what their rows are made of.

    frequencies: [G, 1 or C, R/2], radians for each position; of LongRoPE two tables, one behind the other. factors:
    [R/2] or [1], which multiply cosines and sines.
    """

    frequencies: NDArray[np.float32]
    factors: NDArray[np.float32]
    tables: Mapping[str, NDArray[np.float32]]

    def make(self, turns: _Turns, first: int, last: int) -> None:
        """Make the rows of some positions, as far as there are so many."""
        groups, own, width = self.frequencies.shape
        for name, table in self.tables.items():
            rows_GTR = table.reshape(groups, -1, width)[:, first:last]
            positions_T1 = np.arange(first, first + rows_GTR.shape[1], dtype=np.float32)[:, None]
            angles_GTR = positions_T1 * (self.frequencies if own == 1 else self.frequencies[:, first:last])
            np.multiply(turns.of(angles_GTR, "cos" if ".cos" in name else "sin"), self.factors, out=rows_GTR)


class RotationTables:
    """The tables that a graph is given, float32 [G * C, R/2] each; none where it makes its own.

    runtime: ONNX Runtime, whose cosines and sines they are to the last bit, so that a package answers here as it does
    in any other program. tables: by the names that its attention has for them. They have to live as long as the session
    does.
    """

    def __init__(self, runtime: Any = None, kinds: Sequence[_Kind] = ()) -> None:
        self.tables = {name: table for kind in kinds for name, table in kind.tables.items()}
        self._runtime, self._kinds = runtime, kinds
        self._turns: _Turns | None = None
        self._made = 0
        self._lock = threading.Lock()

    def reach(self, length: int) -> None:
        """Make what is missing for texts of so many tokens."""
        if length <= self._made or not self._kinds:
            return
        with self._lock:
            self._turns = self._turns or _Turns(self._runtime)
            while self._made < length:
                for kind in self._kinds:
                    kind.make(self._turns, self._made, self._made + _ROWS)
                self._made += _ROWS


def rotation_tables(parts: GraphParts, runtime: Any) -> tuple[RotationTables, set[int]]:
    """Return the tables of positions that a graph can be given, and its parts that make its own.

    Raises:
        PackageError: the frequencies cannot be read.
        OutOfMemoryError: there is no room for the tables' addresses.
    """
    makers, taken, numbers = dict[str, Node](), set[str](), dict[str, int]()
    taken_otherwise = set[str]()
    for i, node in parts.nodes(_MARK):
        if _MAKER.fullmatch(node.name):
            makers[node.name], numbers[node.name] = node, i
        else:
            (taken if node.operator in _READERS else taken_otherwise).update(node.inputs)
    names: dict[str, list[str]] = {}  # of tables, by the kind of layer
    for name in sorted(taken & makers.keys()):
        names.setdefault(name.partition(".angles")[0], []).append(name)
    if not names or taken_otherwise & makers.keys():
        return RotationTables(), set()
    tensors = dict[str, StoredTensor]()
    for i, tensor in parts.tensors(_MARK, _CONSTANT):
        tensors[tensor.name], numbers[tensor.name] = tensor, i
    try:
        kinds = [_kind(kind, tables, makers, tensors, parts.folder) for kind, tables in names.items()]
    except (OSError, ValueError, OverflowError) as error:  # the last of an end that is infinite
        raise parts.error(f"has frequencies that cannot be read ({error})") from error
    found = [kind for kind in kinds if kind]
    if len(found) < len(names):  # the graph makes some of them in another way
        return RotationTables(), set()
    ours = tuple(f"{kind}." for kind in names)
    return RotationTables(runtime, found), {i for name, i in numbers.items() if name.startswith(ours)}


def _kind(
    kind: str,
    names: Sequence[str],
    makers: Mapping[str, Node],
    tensors: Mapping[str, StoredTensor],
    folder: Path,
) -> _Kind | None:
    """Map the tables of one kind of layer, as long as the range of their positions; None where they are others."""
    positions, stored = makers.get(f"{kind}.positions"), tensors.get(f"{kind}.frequencies")
    end = None if positions is None or len(positions.inputs) != 3 else tensors.get(positions.inputs[1])
    factors = tensors.get(f"{kind}.attention_factors")
    if stored is None or end is None or end.dims or len(stored.dims) != 3:
        return None
    if any(tensor.type_ != FLOAT32 for tensor in (stored, end, factors or stored)):
        return None
    length, (groups, own, width) = int(end.read(folder, np.float32).item()), stored.dims
    shape = (groups * length, width)
    if own not in (1, length) or not 0 < 4 * math.prod(shape) <= LARGEST_TABLE:
        return None
    return _Kind(
        frequencies=stored.read(folder, np.float32),
        factors=np.ones(1, np.float32) if factors is None else factors.read(folder, np.float32),
        tables={name: _untouched(shape) for name in names},
    )


def _untouched(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return an array of zeros whose pages take no memory until they are written."""
    size = 4 * math.prod(shape)
    try:
        if sys.platform == "win32":
            memory = mmap.mmap(-1, size)
        else:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return np.frombuffer(memory, np.float32).reshape(shape)
    except OSError as error:
        raise OutOfMemoryError(
            f"There is no memory left for a table of {shape[0]} positions ({error}). Free memory, or take a smaller "
            "model."
        ) from error

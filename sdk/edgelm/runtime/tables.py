"""Tables: what a graph looks rows up in, in memory that edgelm gives to ONNX Runtime, and keeps small.

Tables of positions are made as far as texts reach (`RotationTables`). Those in the weights' file are mapped here and
not by ONNX Runtime (`MappedTable`), so that what was read of them can be given back.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from edgelm.memory.mapped_table import MappedTable
from edgelm.package.graph_parts import BFLOAT16, FLOAT16, FLOAT32, INT8, UINT8, GraphParts
from edgelm.runtime.rotation_tables import RotationTables, rotation_tables

_LOOK_UP = {"Gather", "GatherBlockQuantized"}
_MARK = b"Gather"
_SMALLEST = 1 << 20  # bytes: of less, there is not much to give back
_SECONDS = 0.005  # between two times that tables are given back while a head is packed of one
# By TensorProto.DataType; of one that numpy has not, its bits.
_NUMBERS: Mapping[int, DTypeLike] = MappingProxyType(
    {FLOAT32: np.float32, UINT8: np.uint8, INT8: np.int8, FLOAT16: np.float16, BFLOAT16: np.uint16}
)


class Tables:
    """The tables that a graph is given; none where it has its own. They have to live as long as its session does."""

    def __init__(
        self, rotations: RotationTables | None = None, mapped: Mapping[str, tuple[int, MappedTable]] | None = None
    ) -> None:
        self._rotations = rotations or RotationTables()
        self._mapped = dict(mapped or {})

    def values(self, runtime: Any) -> dict[str, Any]:
        """Return the tables as ONNX Runtime has them, by the names of the graph's initializers."""
        make = runtime.OrtValue.ortvalue_from_numpy_with_onnx_type
        mapped = {name: make(table.array, type_) for name, (type_, table) in self._mapped.items()}
        return mapped | {name: make(table, FLOAT32) for name, table in self._rotations.tables.items()}

    def reach(self, length: int) -> None:
        """Make what is missing for texts of so many tokens."""
        self._rotations.reach(length)

    def give_back(self) -> None:
        """Give the memory of what was read of the file back: the rows, and the pages around them."""
        for _, table in self._mapped.values():
            table.give_back()

    @contextlib.contextmanager
    def kept_small(self) -> Iterator[None]:
        """Give back what the block reads of the tables while it runs: a tied head is packed of a whole one."""
        if not self._mapped:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._keep_small, args=(done,), name="edgelm-tables", daemon=True)
        try:
            thread.start()  # an interrupt may come when it is there already
            yield
        finally:
            done.set()
            if thread.is_alive():
                thread.join()
            self.give_back()

    def _keep_small(self, done: threading.Event) -> None:
        while not done.wait(_SECONDS):
            self.give_back()


def with_tables(graph: bytes, path: Path, runtime: Any) -> tuple[bytes, Tables]:
    """Return a graph that can be given tables, and those.

    graph: the content of `path`, as it was walked; what it has in files lies beside that. runtime: ONNX Runtime.

    Raises:
        PackageError: a table cannot be read.
        OutOfMemoryError: there is no room for the addresses of one.
    """
    if _MARK not in graph:  # no model of text
        return graph, Tables()
    parts = GraphParts(graph, path)
    rotations, makers = rotation_tables(parts, runtime)
    given = {name: (FLOAT32, table.shape) for name, table in rotations.tables.items()}
    return parts.rebuilt(makers, given) if makers else graph, Tables(rotations, _mapped(parts))


def _mapped(parts: GraphParts) -> dict[str, tuple[int, MappedTable]]:
    """Map what nodes look rows up in, where it is large enough and can be mapped: data type and table, by name."""
    looked_up = {node.inputs[0] for _, node in parts.nodes(_MARK) if node.operator in _LOOK_UP and node.inputs}
    found = {}
    for _, tensor in parts.tensors():
        numbers = _NUMBERS.get(tensor.type_)
        if tensor.name not in looked_up or not tensor.file or numbers is None:
            continue
        if math.prod(tensor.dims) * np.dtype(numbers).itemsize >= _SMALLEST:
            try:
                table = MappedTable(parts.folder / tensor.file, tensor.offset, numbers, tensor.dims)
            except OSError:  # some file systems map no files (FUSE's direct_io): ONNX Runtime reads it then
                continue
            except ValueError as error:
                raise parts.error(f"has a table that cannot be mapped ({error})") from error
            found[tensor.name] = tensor.type_, table
    return found

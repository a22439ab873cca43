"""Graph: an ONNX graph under construction, node by node, in its final form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgelm._version import __version__
from edgelm.architecture.quantization_recipe import STANDARD
from edgelm_export.graph.external_data import ExternalData

MICROSOFT = "com.microsoft"
FLOAT, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
INT8, INT32, INT64 = onnx.TensorProto.INT8, onnx.TensorProto.INT32, onnx.TensorProto.INT64
TO_END = 2**63 - 1  # of an axis that is cut by Slice
BATCH = "batch_size"  # the dimension's name that transformers.js looks for to make the first, empty cache
OPSETS = {"": 21, MICROSOFT: 1}
_IR_VERSION = 10  # of onnx 1.16: what ONNX Runtime 1.28 and every later one reads
_INLINE_BYTES = 1024


def opsets_of(operators: str) -> dict[str, int]:
    """Return the operator sets, with their versions, that a graph of one of OPERATOR_SETS is written in."""
    return {domain: version for domain, version in OPSETS.items() if operators != STANDARD or not domain}


class Graph:
    """Collect nodes, inputs, outputs and initializers; large initializers go to the external data at once."""

    def __init__(self, data: ExternalData) -> None:
        self._data = data
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()  # of the nodes
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare an input."""
        self._inputs.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare an output."""
        self._outputs.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add an initializer under its canonical name."""
        self._initializers[name] = (
            onnx.numpy_helper.from_array(array, name) if array.nbytes <= _INLINE_BYTES else self._data.add(name, array)
        )
        return name

    def second_name(self, name: str, of: str) -> str:
        """Add an initializer again under another name; in the external data it stays one."""
        self._initializers[name] = onnx.TensorProto()
        self._initializers[name].CopyFrom(self._initializers[of])
        self._initializers[name].name = name
        return name

    def has_weight(self, name: str) -> bool:
        """Tell whether an initializer of that name is there already."""
        return name in self._initializers

    def constant(self, value: int | float | list[int] | list[list[int]], dtype: type[np.generic] = np.int64) -> str:
        """Return the name of a small constant; equal ones are shared."""
        array = np.array(value, dtype)
        name = f"constant.{array.dtype}.{array.tolist()}".replace(" ", "")
        return name if self.has_weight(name) else self.weight(name, array)

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: str | Sequence[str],
        domain: str = "",
        attributes: dict[str, Any] | None = None,
    ) -> str:
        """Add a node, and return the name of its first output."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        # A node is named for its first output; make_node leaves out attributes that are None.
        self._nodes.append(
            onnx.helper.make_node(operator, inputs, names, name=names[0], domain=domain, **(attributes or {}))
        )
        self._names.add(names[0])
        return names[0]

    def has_node(self, output: str) -> bool:
        """Tell whether there is a node of that name, which is that of its first output."""
        return output in self._names

    def take_back(self, output: str) -> bool:
        """Remove the last node, if `output` is the name of its output, and tell whether it was."""
        is_last = bool(self._nodes) and list(self._nodes[-1].output) == [output]
        if is_last:
            self._nodes.pop()
            self._names.discard(output)
        return is_last

    def model(self, name: str) -> onnx.ModelProto:
        """Return the finished model, with the operator sets that its nodes are of."""
        domains = {node.domain for node in self._nodes}
        graph = onnx.helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, list(self._initializers.values())
        )
        return onnx.helper.make_model(
            graph,
            opset_imports=[
                onnx.helper.make_opsetid(domain, version) for domain, version in OPSETS.items() if domain in domains
            ],
            ir_version=_IR_VERSION,
            producer_name="edgelm",
            producer_version=__version__,
        )

"""The operators that a packed weight is computed with: MatMulNBits, or QDQ, which any ONNX runtime knows.

Each has four parts: `store` adds a weight's initializers, and returns their names; `product` multiplies by them, `rows`
looks rows of them up, as an embedding does, and `tied` names them for the head that shares them with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.planes import LOWER_BITS, PLANES, UPPER_BITS, shifts, to_planes
from edgelm.runtime.adapter_graph import WITH_SUMS
from edgelm_export.checkpoints.tensor_map import REMAINDER
from edgelm_export.graph.graph import FLOAT, MICROSOFT, Graph
from edgelm_export.graph.shortlist import add_shortlist, behind_zeros, last_positions
from edgelm_export.quantize.finer_grid import on_finer_grid
from edgelm_export.quantize.offsets import in_8_bits, joined
from edgelm_export.quantize.packed import PackedWeight
from edgelm_export.quantize.qdq import BITS, to_qdq, whole_block_size

# The activations are quantized to 8 bits inside the operator; with any other level an 8-bit product is 19 times slower.
_ACCURACY_LEVEL = 4


class PackedOperators(Protocol):
    """One way to compute with packed weights."""

    def store(self, graph: Graph, module: str, weight: PackedWeight) -> list[str]: ...  # noqa: D102

    def product(self, graph: Graph, hidden: str, parts: list[str], weight: PackedWeight, output: str) -> str: ...  # noqa: D102

    def rows(self, graph: Graph, name: str, parts: list[str], weight: PackedWeight, ids: str) -> str: ...  # noqa: D102

    def tied(self, graph: Graph, parts: list[str]) -> list[str]: ...  # noqa: D102


class NBits:
    """ONNX Runtime's own operators: the fastest on a CPU.

    Source: the operator specifications of com.microsoft.MatMulNBits and com.microsoft.GatherBlockQuantized.
    """

    def store(self, graph: Graph, module: str, weight: PackedWeight) -> list[str]:
        """Store a weight in MatMulNBits' layout and order."""
        weight = joined(weight)
        parts = [
            self._integers(graph, f"{module}.weight", weight),
            self._scales(graph, f"{module}.weight.scales", weight),
        ]
        if weight.zero_points is not None:
            parts.append(graph.weight(f"{module}.weight.zero_points", weight.zero_points))
        if weight.remainder is not None:
            parts += self.store(graph, f"{module}.{REMAINDER}", weight.remainder)
        return parts

    def _integers(self, graph: Graph, name: str, weight: PackedWeight) -> str:
        """Store the integers; those of 5 and 6 bits in planes, and nodes that make them the upper bits of 8 at load.

        So zero points of 8 bits lie between their steps, too, where a block's least weight wants them.
        """
        if weight.bits not in LOWER_BITS:
            return graph.weight(name, weight.packed)
        lower = LOWER_BITS[weight.bits]
        places = ((UPPER_BITS, 8 - UPPER_BITS), (lower, 8 - weight.bits))
        parts = [
            self._spread(graph, f"{name}.{kind}", plane, *place)
            for kind, plane, place in zip(PLANES, to_planes(weight.packed, weight.bits), places, strict=True)
        ]
        return graph.node("BitwiseOr", parts, name)

    def _spread(self, graph: Graph, name: str, plane: NDArray[np.uint8], bits: int, place: int) -> str:
        """Store a plane, and return its values one a byte, each in the bits from `place` on."""
        graph.weight(name, plane)
        # ONNX Runtime keeps what each node gives until all are computed. The upper plane needs but one shift.
        at_once = place if place >= max(shifts(bits)) else 0
        by_shift = graph.constant([[abs(shift - at_once)] for shift in shifts(bits)], np.uint8)
        left, right = {"direction": "LEFT"}, {"direction": "RIGHT"}
        shifted = graph.node("BitShift", [name, by_shift], f"{name}.shifted", attributes=left if at_once else right)
        mask = graph.constant((1 << bits) - 1 << at_once, np.uint8)
        masked = graph.node("BitwiseAnd", [shifted, mask], f"{name}.masked")
        values = graph.node("Reshape", [masked, graph.constant([0, 0, -1])], f"{name}.values")
        if at_once:
            return values
        return graph.node("BitShift", [values, graph.constant(place, np.uint8)], f"{name}.placed", attributes=left)

    def _scales(self, graph: Graph, name: str, weight: PackedWeight) -> str:
        """Store scales; the operator wants them in its input's type, to which ONNX Runtime widens them at load.

        Those of 5 and 6 bits are of their own steps on the disk, since float16 may not hold those of 8.
        """
        stored = weight.stored_scales
        scales = graph.weight(name, stored)
        if stored.dtype != np.float32:
            scales = graph.node("Cast", [scales], f"{name}.float", attributes={"to": FLOAT})
        if weight.bits not in LOWER_BITS:
            return scales
        step = graph.constant(2.0 ** (weight.bits - 8), np.float32)
        return graph.node("Mul", [scales, step], f"{name}.of_8_bits")

    def product(self, graph: Graph, hidden: str, parts: list[str], weight: PackedWeight, output: str) -> str:
        """Add MatMulNBits over stored parts."""
        if weight.remainder is not None:
            upper, lower = parts[:2], parts[2:]
            logits = self.product(graph, hidden, upper, dataclasses.replace(weight, remainder=None), f"{output}.upper")
            return self._with_remainder(graph, hidden, logits, lower, weight.remainder, output)
        if weight.offsets is not None:
            hidden = self._with_sums(graph, hidden, weight.block_size)
        attributes = {
            "N": weight.packed.shape[0],
            "K": weight.columns + (0 if weight.offsets is None else weight.offsets.columns),
            "bits": _computed_bits(weight),
            "block_size": weight.block_size,
            "accuracy_level": _ACCURACY_LEVEL,
        }
        return graph.node("MatMulNBits", [hidden, *parts], output, MICROSOFT, attributes)

    def _with_remainder(
        self, graph: Graph, hidden: str, upper: str, parts: list[str], remainder: PackedWeight, output: str
    ) -> str:
        """Add the product by the lower plane to the largest logits of the upper one [B, T, V]; hidden: [B, T, D]."""
        name, last = f"{output}.shortlist", graph.constant([-1])
        ids = add_shortlist(graph, upper, len(remainder.scales), name)
        last_ids, last_hidden = (
            last_positions(graph, each, f"{name}.last_{kind}") for each, kind in ((ids, "ids"), (hidden, "hidden"))
        )
        rows = self._gathered(graph, f"{name}.rows", parts, remainder, last_ids, axes=3)
        column = graph.node("Unsqueeze", [last_hidden, last], f"{name}.column")
        products = graph.node("MatMul", [rows, column], f"{name}.products")
        missing = behind_zeros(graph, graph.node("Squeeze", [products, last], f"{name}.missing"), name)
        attributes = {"axis": -1, "reduction": "add"}
        return graph.node("ScatterElements", [upper, ids, missing], output, attributes=attributes)

    def _with_sums(self, graph: Graph, hidden: str, block_size: int) -> str:
        """Put the sums of an input's blocks behind it, [B, T, K + blocks], once for all products of the input."""
        name = f"{hidden}{WITH_SUMS}"
        if graph.has_node(name):
            return name
        blocks = graph.node("Reshape", [hidden, graph.constant([0, 0, -1, block_size])], f"{hidden}.blocks")
        attributes = {"keepdims": 0}
        sums = graph.node("ReduceSum", [blocks, graph.constant([-1])], f"{hidden}.sums", attributes=attributes)
        return graph.node("Concat", [hidden, sums], name, attributes={"axis": -1})

    def rows(self, graph: Graph, name: str, parts: list[str], weight: PackedWeight, ids: str) -> str:
        """Gather rows of a packed weight, of both planes where it has two."""
        if weight.remainder is None:
            return self._gathered(graph, name, parts, weight, ids)
        upper = self._gathered(graph, f"{name}.upper", parts[:2], weight, ids)
        lower = self._gathered(graph, f"{name}.lower", parts[2:], weight.remainder, ids)
        return graph.node("Add", [upper, lower], f"{name}.rows")

    def _gathered(
        self, graph: Graph, name: str, parts: list[str], weight: PackedWeight, ids: str, axes: int = 2
    ) -> str:
        """Gather rows of a packed weight [V, blocks, bytes] by ids of so many axes, and join their blocks.

        Gathering block by block, the operator reads the tensor in the shape that MatMulNBits has it in: as a matrix it
        would be a second copy in memory, a fifth of a small model.
        """
        V, blocks = weight.scales.shape
        scales = graph.node("Reshape", [parts[1], graph.constant([V, blocks, 1])], f"{name}.scales")
        attributes = {
            "bits": _computed_bits(weight),
            "block_size": weight.block_size,
            "gather_axis": 0,
            "quantize_axis": 2,
        }
        inputs = [parts[0], ids, scales]
        rows = graph.node("GatherBlockQuantized", inputs, f"{name}.blocks", MICROSOFT, attributes)
        shape = graph.constant([0] * axes + [blocks * weight.block_size])
        joined = graph.node("Reshape", [rows, shape], f"{name}.output")
        if weight.columns == blocks * weight.block_size:
            return joined
        bounds = [graph.constant([value]) for value in (0, weight.columns, -1)]
        return graph.node("Slice", [joined, *bounds], f"{name}.unpadded")

    def tied(self, graph: Graph, parts: list[str]) -> list[str]:
        """Return the same names: one copy in memory serves both."""
        return parts


def _computed_bits(weight: PackedWeight) -> int:
    return 8 if weight.bits in LOWER_BITS else weight.bits


class QDQ:
    """ONNX's own operators: DequantizeLinear of int8 in blocks, and MatMul by what it gives.

    ONNX Runtime makes MatMulNBits of the two when it loads the graph on a CPU, where nothing else reads the weight.
    Source: the operator specification of DequantizeLinear, version 21.
    """

    def store(self, graph: Graph, module: str, weight: PackedWeight) -> list[str]:
        """Store a weight as int8 [K, N] with scales [blocks, N], and zero points where it has them.

        Those of 5 and 6 bits lie between the steps, and at whole ones of 8.
        """
        kinds = ("weight", "weight.scales", "weight.zero_points")
        weight = in_8_bits(weight)
        if weight.bits in LOWER_BITS:
            weight = on_finer_grid(weight, BITS, weight.block_size, weight.zero_points is not None)
        parts = [part for part in to_qdq(weight) if part is not None]
        return [graph.weight(f"{module}.{kind}", part) for kind, part in zip(kinds, parts, strict=False)]

    def product(self, graph: Graph, hidden: str, parts: list[str], weight: PackedWeight, output: str) -> str:
        """Add the product by a dequantized weight."""
        name = f"{parts[0]}.dequantized"
        attributes = {"axis": 0, "block_size": whole_block_size(weight)}
        dequantized_KN = graph.node("DequantizeLinear", parts, name, attributes=attributes)
        return graph.node("MatMul", [hidden, dequantized_KN], output)

    def rows(self, graph: Graph, name: str, parts: list[str], weight: PackedWeight, ids: str) -> str:
        """Gather columns of the stored weight [D, V], and scale each block.

        Not by DequantizeLinear, which OpenVINO has for weights of a fixed shape alone. An embedding is symmetric.
        """
        kinds = zip(parts, ("values", "scales"), strict=True)
        values, scales = (self._columns(graph, part, ids, f"{name}.{kind}") for part, kind in kinds)
        size = whole_block_size(weight)
        steps = graph.node("Cast", [values], f"{name}.steps", attributes={"to": FLOAT})
        in_blocks = graph.constant([0, 0, weight.columns // size, size])
        blocks = graph.node("Reshape", [steps, in_blocks], f"{name}.blocks")
        scale_each = graph.node("Unsqueeze", [scales, graph.constant([-1])], f"{name}.block_scales")
        scaled = graph.node("Mul", [blocks, scale_each], f"{name}.scaled")
        return graph.node("Reshape", [scaled, graph.constant([0, 0, weight.columns])], f"{name}.output")

    def _columns(self, graph: Graph, part: str, ids: str, name: str) -> str:
        """Gather the columns of the tokens as rows, [B, T, what a column holds]."""
        columns = graph.node("Gather", [part, ids], f"{name}.columns", attributes={"axis": 1})
        return graph.node("Transpose", [columns], name, attributes={"perm": [1, 2, 0]})

    def tied(self, graph: Graph, parts: list[str]) -> list[str]:
        """Return second names of the same bytes on disk: of what two nodes read, no MatMulNBits is made."""
        return [graph.second_name(f"{part}.tied", part) for part in parts]


# One row for each of edgelm.architecture.quantization_recipe.OPERATOR_SETS.
PACKED_OPERATORS: Mapping[str, PackedOperators] = {"onnxruntime": NBits(), "standard": QDQ()}

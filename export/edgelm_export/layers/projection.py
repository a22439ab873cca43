"""Projections: matrix products in the graph, in floats or on a grid, fused where their grids allow it."""

from __future__ import annotations

import numpy as np

from edgelm.architecture.planes import LOWER_BITS
from edgelm.architecture.quantization_recipe import Precision, scheme_for
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.tensor_map import EXPERTS
from edgelm_export.graph.graph import FLOAT, Graph
from edgelm_export.layers.packed_operators import PACKED_OPERATORS
from edgelm_export.quantize.finer_grid import on_finer_grid
from edgelm_export.quantize.packed import PackedWeight, stack
from edgelm_export.quantize.portions import Stored
from edgelm_export.quantize.stored import quantize


class Projections:
    """Write the projections of one checkpoint into a graph, each stored as the precision says."""

    def __init__(self, graph: Graph, checkpoint: Checkpoint, precision: Precision) -> None:
        self._graph, self._checkpoint, self._recipe = graph, checkpoint, precision.recipe(checkpoint.config)
        self._shapes = checkpoint.config.tensor_shapes()
        self.operator_set, self.operators = precision.operators, PACKED_OPERATORS[precision.operators]

    def read(self, name: str) -> Stored:
        """Read one matrix as the precision stores it; the scheme goes by the canonical name.

        Experts are many small ones: of 5 or 6 bits they lie in 8, since planes are put together by ten nodes each.
        """
        weight = quantize(self._checkpoint, name, scheme_for(self._recipe, name))
        if EXPERTS not in name or not isinstance(weight, PackedWeight) or weight.bits not in LOWER_BITS:
            return weight
        return on_finer_grid(weight, 8, weight.block_size, weight.zero_points is not None)

    def linear(self, hidden: str, module: str) -> str:
        """Add `hidden @ weight.T + bias` of one module, such as "model.layers.0.self_attn.o_proj"."""
        return self._product(hidden, module, self.read(f"{module}.weight"), [module])

    def head(self, hidden: str, output: str) -> None:
        """Add the untied head, under the name of the graph's output."""
        self._product_without_bias(hidden, "lm_head", self.read("lm_head.weight"), output)

    def fused(self, hidden: str, modules: list[str], fused: str) -> list[str]:
        """Add several projections of one input: as one product where their grids are alike, else one by one.

        Returns one output (all stacked, named `fused`) or one for each module.
        """
        weights = [self.read(f"{module}.weight") for module in modules]
        packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
        floats = [weight for weight in weights if not isinstance(weight, PackedWeight)]
        if not packed and len({weight.dtype for weight in floats}) == 1:
            return [self._product(hidden, fused, np.concatenate(floats), modules)]
        if len(packed) == len(weights) and len({weight.layout for weight in packed}) == 1:
            return [self._product(hidden, fused, stack(packed), modules)]
        return [
            self._product(hidden, module, weight, [module]) for module, weight in zip(modules, weights, strict=True)
        ]

    def _product(self, hidden: str, module: str, weight: Stored, sources: list[str]) -> str:
        """Add the product by a weight, and the bias of the modules that it came from."""
        output = self._product_without_bias(hidden, module, weight, f"{module}.output")
        if f"{sources[0]}.bias" not in self._shapes:
            return output
        bias = np.concatenate([self._checkpoint.tensor(f"{source}.bias") for source in sources])
        return self._graph.node("Add", [output, self._graph.weight(f"{module}.bias", bias)], f"{module}.biased")

    def _product_without_bias(self, hidden: str, module: str, weight: Stored, output: str) -> str:
        if isinstance(weight, PackedWeight):
            parts = self.operators.store(self._graph, module, weight)
            return self.operators.product(self._graph, hidden, parts, weight, output)
        transposed_KN = self._graph.weight(f"{module}.weight", np.ascontiguousarray(weight.T))
        return self._graph.node("MatMul", [hidden, self.widened(transposed_KN, weight.dtype)], output)

    def widened(self, name: str, dtype: np.dtype[np.floating]) -> str:
        """Return a stored float matrix, or rows of it, as float32.

        ONNX Runtime has no CPU kernels to speak of for 16 bits, and folds the cast of a constant when it loads: half
        the file, the memory and speed of float32.
        """
        if dtype == np.float32:
            return name
        return self._graph.node("Cast", [name], f"{name}.float32", attributes={"to": FLOAT})

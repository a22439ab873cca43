"""Attention and rotation in operators of the ONNX standard that every runtime knows: products, sums and Softmax.

The standard has operators for both since opset 23. Few providers and runtimes know them yet, and what Attention means
has changed twice since.

Shapes: B batch, T query tokens, S key tokens, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgelm_export.graph.graph import TO_END, Graph

# Added to the score of a key that is not to be seen: the lowest number of float16, which some providers compute in.
UNSEEN = -65504.0


def split_heads(graph: Graph, hidden: str, heads: int, head_dim: int, name: str) -> str:
    """Cut the last dimension [B, T, N * H] into heads [B, T, N, H]."""
    return graph.node("Reshape", [hidden, graph.constant([0, 0, heads, head_dim])], f"{name}.heads")


def heads_first(graph: Graph, heads_BTNH: str, name: str) -> str:
    """Turn [B, T, N, H] to [B, N, T, H]."""
    return graph.node("Transpose", [heads_BTNH], f"{name}.heads_first", attributes={"perm": [0, 2, 1, 3]})


def rotate(graph: Graph, heads_BTNH: str, cos_BT1R: str, sin_BT1R: str, cut: list[int], name: str) -> str:
    """Turn each pair of dimensions of the first two of the parts that a head is cut into, of one size; a third stays.

    cut: the sizes of the parts. The cosines and sines [B, T, 1, R / 2] are those of the tokens' positions.
    """
    parts = [f"{name}.part{i}" for i in range(len(cut))]
    graph.node("Split", [heads_BTNH, graph.constant(cut)], parts, attributes={"axis": -1})
    products = [
        graph.node("Mul", [part, factor], f"{part}.{turned}")
        for turned, factor in (("cos", cos_BT1R), ("sin", sin_BT1R))
        for part in parts[:2]
    ]
    first = graph.node("Sub", [products[0], products[3]], f"{name}.first")
    second = graph.node("Add", [products[1], products[2]], f"{name}.second")
    return graph.node("Concat", [first, second, *parts[2:]], f"{name}.rotated", attributes={"axis": -1})


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Scaled dot-product attention, and what a config puts into it.

    name: what its nodes' names begin with. addends: what is added to the scores, each such that it fits [B, N, T, S].
    sinks: a score of each head [1, N, 1, 1] that takes its share of the weights and brings nothing.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    soft_cap: float | None = None
    addends: Sequence[str] = ()
    sinks: str = ""

    def add(self, graph: Graph, q_BNTH: str, k_BKSH: str, v_BKSH: str) -> str:
        """Add what the queries gather, [B, T, N * H]."""
        name = self.name
        scaled = graph.node("Mul", [q_BNTH, graph.constant(self.scale, np.float32)], f"{name}.scaled")
        k_BKHS = graph.node("Transpose", [k_BKSH], f"{name}.keys", attributes={"perm": [0, 1, 3, 2]})
        queries = self._grouped(graph, scaled, self.kv_heads, self.head_dim, f"{name}.queries")
        scores = graph.node("MatMul", [queries, k_BKHS], f"{name}.scores")
        scores = self._changed(graph, self._grouped(graph, scores, self.heads, 0, f"{name}.scores_by_head"))
        weights = self._softmax(graph, scores)
        weights = self._grouped(graph, weights, self.kv_heads, 0, f"{name}.weights_by_group")
        gathered = graph.node("MatMul", [weights, v_BKSH], f"{name}.gathered")
        gathered = self._grouped(graph, gathered, self.heads, self.head_dim, f"{name}.gathered_by_head")
        gathered_BTNH = graph.node("Transpose", [gathered], f"{name}.tokens_first", attributes={"perm": [0, 2, 1, 3]})
        width = graph.constant([0, 0, self.heads * self.head_dim])
        return graph.node("Reshape", [gathered_BTNH, width], f"{name}.output")

    def _grouped(self, graph: Graph, values: str, heads: int, width: int, name: str) -> str:
        """Lay the query heads that share a kv head behind each other, [B, K, N / K * T, width], or apart again.

        So keys and values are multiplied as they are in the cache, without a copy for each query head. width 0: as it
        is.
        """
        if self.heads == self.kv_heads:
            return values
        return graph.node("Reshape", [values, graph.constant([0, heads, -1, width])], name)

    def _changed(self, graph: Graph, scores: str) -> str:
        """Cap the scores, and add what is to be added."""
        name = self.name
        if self.soft_cap is not None:
            cap = graph.constant(self.soft_cap, np.float32)
            share = graph.node("Tanh", [graph.node("Div", [scores, cap], f"{name}.of_cap")], f"{name}.share_of_cap")
            scores = graph.node("Mul", [share, cap], f"{name}.capped")
        for number, addend in enumerate(self.addends):
            scores = graph.node("Add", [scores, addend], f"{name}.added{number}")
        return scores

    def _softmax(self, graph: Graph, scores: str) -> str:
        name = self.name
        if not self.sinks:
            return graph.node("Softmax", [scores], f"{name}.weights", attributes={"axis": -1})
        rows = graph.node("Shape", [scores], f"{name}.rows", attributes={"end": 3})
        shape = graph.node("Concat", [rows, graph.constant([1])], f"{name}.sinks_shape", attributes={"axis": 0})
        sinks = graph.node("Expand", [self.sinks, shape], f"{name}.sinks_of_rows")
        every = graph.node("Concat", [sinks, scores], f"{name}.scores_and_sinks", attributes={"axis": -1})
        weights = graph.node("Softmax", [every], f"{name}.weights_and_sinks", attributes={"axis": -1})
        bounds = [graph.constant([value]) for value in (1, TO_END, -1)]
        return graph.node("Slice", [weights, *bounds], f"{name}.weights")

"""Shortlist: the tokens with the largest logits, found in a graph.

Shapes: B batch, T tokens, V vocabulary, S tokens of the shortlist.
"""

from __future__ import annotations

import numpy as np

from edgelm.architecture.shortlist import SHORTLISTED_POSITIONS
from edgelm_export.graph.graph import TO_END, Graph

# Of tokens; what more or fewer of them cost: docs/results/quantization.md#a-head-in-two-planes
SHORTLIST_SIZE = 512
# Only the groups of neighbours with the largest maximum are looked through: TopK of a whole vocabulary takes longer.
_GROUPS = 128
_NEIGHBOURS = range(16, 65)


def group_size(vocabulary: int) -> int | None:
    """Return how many neighbours are a group; None: no number of them divides the vocabulary."""
    return next((size for size in _NEIGHBOURS if vocabulary % size == 0), None)


def add_shortlist(graph: Graph, logits: str, vocabulary: int, name: str) -> str:
    """Return the ids [B, T, S] of the largest logits [B, T, V], or nearly: a few may stand in other groups."""
    size, last = group_size(vocabulary), graph.constant([-1])
    assert size is not None  # as the weight was stored for one
    groups = graph.node("Reshape", [logits, graph.constant([0, 0, -1, size])], f"{name}.groups")
    largest = graph.node("ReduceMax", [groups, last], f"{name}.largest", attributes={"keepdims": 0})
    best_groups = _top(graph, largest, _GROUPS, f"{name}.best_groups")
    first = graph.node("Mul", [best_groups, graph.constant(size)], f"{name}.first")
    column = graph.node("Unsqueeze", [first, last], f"{name}.first_column")
    members = graph.node("Add", [column, graph.constant(list(range(size)))], f"{name}.members")
    candidates = graph.node("Reshape", [members, graph.constant([0, 0, -1])], f"{name}.candidates")
    of_them = graph.node("GatherElements", [logits, candidates], f"{name}.of_candidates", attributes={"axis": -1})
    best = _top(graph, of_them, SHORTLIST_SIZE, f"{name}.best")
    return graph.node("GatherElements", [candidates, best], f"{name}.ids", attributes={"axis": -1})


def last_positions(graph: Graph, values: str, name: str) -> str:
    """Keep the last SHORTLISTED_POSITIONS of values [B, T, ...]."""
    inputs = [values, graph.constant([-SHORTLISTED_POSITIONS]), graph.constant([TO_END]), graph.constant([1])]
    return graph.node("Slice", inputs, name)


def behind_zeros(graph: Graph, missing: str, name: str) -> str:
    """Put what is added to the last positions [B, up to SHORTLISTED_POSITIONS, S] behind zeros for those before."""
    bounds = [graph.constant([value]) for value in (0, -SHORTLISTED_POSITIONS, 1)]
    before = graph.node("Slice", [f"{name}.best.values", *bounds], f"{name}.before")
    zeros = graph.node("Mul", [before, graph.constant(0.0, np.float32)], f"{name}.zeros")
    return graph.node("Concat", [zeros, missing], f"{name}.added", attributes={"axis": 1})


def _top(graph: Graph, values: str, count: int, name: str) -> str:
    """Return the places of the largest along the last axis; they themselves are beside it."""
    outputs = [f"{name}.values", name]
    graph.node("TopK", [values, graph.constant([count])], outputs, attributes={"axis": -1, "sorted": 0})
    return name

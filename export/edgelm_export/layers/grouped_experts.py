"""Experts in the graph, each with products of its own for the tokens that chose it.

MoE and QMoE know experts gated by silu alone on a CPU, as of ONNX Runtime 1.32. Here the tokens lie by expert, one
behind the other, and each expert's part goes through its projections: those of an expert that no token chose multiply
nothing.
Shapes: B batch, T tokens, D hidden, E experts, C of which a token chooses, P places: one for each choice, B * T * C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgelm_export.graph.graph import Graph

if TYPE_CHECKING:
    from edgelm_export.layers.stack import Stack


def add_grouped_experts(stack: Stack, hidden: str, weights: str, chosen: str, name: str) -> str:
    """Add what the chosen experts make of the tokens, [B, T, D]; both of `weights` and `chosen` are [B, T, C]."""
    graph, config = stack.graph, stack.config
    D, C = config.hidden_size, config.num_experts_per_tok
    sizes, order = _sorted_places(graph, chosen, config.num_experts, name)
    rows = graph.node("Reshape", [hidden, graph.constant([-1, D])], f"{name}.rows")
    positions = graph.node("Div", [order, graph.constant(C)], f"{name}.positions")
    read_PD = graph.node("Gather", [rows, positions], f"{name}.read")
    made_PD = _made(stack, read_PD, sizes, name)
    place = _ascending(graph, order, f"{name}.place")
    by_token = graph.node("Gather", [made_PD, place], f"{name}.by_token")
    by_choice = graph.node("Reshape", [by_token, graph.constant([-1, C, D])], f"{name}.by_choice")
    shares = graph.node("Reshape", [weights, graph.constant([-1, 1, C])], f"{name}.shares")
    summed = graph.node("MatMul", [shares, by_choice], f"{name}.summed")
    shape = graph.node("Shape", [hidden], f"{name}.shape")
    return graph.node("Reshape", [summed, shape], f"{name}.output")


def _sorted_places(graph: Graph, chosen: str, experts: int, name: str) -> tuple[str, str]:
    """Return how many places each expert has, [E], and the places by expert, [P]."""
    by_place = graph.node("Reshape", [chosen, graph.constant([-1])], f"{name}.chosen")
    inputs = [by_place, graph.constant(experts), graph.constant([0, 1])]
    marks_PE = graph.node("OneHot", inputs, f"{name}.marks", attributes={"axis": -1})
    sizes = graph.node("ReduceSum", [marks_PE, graph.constant([0])], f"{name}.sizes", attributes={"keepdims": 0})
    return sizes, _ascending(graph, by_place, f"{name}.order")


def _ascending(graph: Graph, values: str, name: str) -> str:
    """Return the places of some values in ascending order."""
    count = graph.node("Shape", [values], f"{name}.count")
    attributes = {"axis": 0, "largest": 0, "sorted": 1}
    graph.node("TopK", [values, count], [f"{name}.values", name], attributes=attributes)
    return name


def _made(stack: Stack, read_PD: str, sizes: str, name: str) -> str:
    """Return what each expert makes of its part of the rows, [P, D]."""
    graph, E = stack.graph, stack.config.num_experts
    experts = [f"{name}.experts.{expert}" for expert in range(E)]
    parts = [f"{expert}.input" for expert in experts]
    graph.node("Split", [read_PD, sizes], parts, attributes={"axis": 0})
    opened = [_opened(stack, part, expert) for part, expert in zip(parts, experts, strict=True)]
    inner = graph.node("Concat", opened, f"{name}.experts.opened", attributes={"axis": 0})
    if stack.config.mlp_gated:
        halves = [f"{name}.experts.gates", f"{name}.experts.ups"]
        graph.node("Split", [inner], halves, attributes={"axis": -1, "num_outputs": 2})
        gates = stack.activation(halves[0], f"{name}.experts")
        inner = graph.node("Mul", [gates, halves[1]], f"{name}.experts.gated")
    else:
        inner = stack.activation(inner, f"{name}.experts")
    parts = [f"{expert}.inner" for expert in experts]
    graph.node("Split", [inner, sizes], parts, attributes={"axis": 0})
    made = [stack.projections.linear(part, f"{expert}.down_proj") for part, expert in zip(parts, experts, strict=True)]
    return graph.node("Concat", made, f"{name}.experts.made", attributes={"axis": 0})


def _opened(stack: Stack, read: str, expert: str) -> str:
    """Return an expert's gates and ups of some rows, side by side, or the ups where they have no gates."""
    if not stack.config.mlp_gated:
        return stack.projections.linear(read, f"{expert}.up_proj")
    modules, fused = [f"{expert}.gate_proj", f"{expert}.up_proj"], f"{expert}.gate_up_proj"
    outputs = stack.projections.fused(read, modules, fused)
    if len(outputs) == 1:
        return outputs[0]
    return stack.graph.node("Concat", outputs, f"{fused}.joined", attributes={"axis": -1})

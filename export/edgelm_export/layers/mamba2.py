"""Mamba 2 in a decoder's graph: the twin of edgelm_training/layers/mamba2.py, with the states of linear attention.

Shapes: B batch, T query tokens, G groups, N heads, X the size of a group's keys, Y that of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgelm_export.graph.graph import MICROSOFT
from edgelm_export.layers.linear_attention import add_convolution, add_decay, add_step, share_heads
from edgelm_export.layers.stack import Stack


def add_mamba2(stack: Stack, hidden: str, name: str, states: Sequence[str], given: Sequence[str]) -> str:
    """Add a layer, up to its output projection.

    states: the names of the inputs. given: those of the outputs.
    """
    graph, config = stack.graph, stack.config
    G, N, Y = config.linear_num_key_heads or 0, config.linear_num_value_heads or 0, config.linear_value_head_dim or 0
    read, values = add_mamba2_memory(stack, hidden, name, states, given)
    # A constant, one for each channel of a head: ONNX Runtime makes it when it loads the graph.
    factors = stack.stored(f"{name}.D")
    by_head = graph.node("Unsqueeze", [factors, graph.constant([-1])], f"{name}.D.by_head")
    by_channel = graph.node("Expand", [by_head, graph.constant([N, Y])], f"{name}.D.by_channel")
    factors = graph.node("Reshape", [by_channel, graph.constant([N * Y])], f"{name}.D.channels")
    past = graph.node("Mul", [values, factors], f"{name}.past")
    summed = graph.node("Add", [read, past], f"{name}.read_and_past")
    gate = stack.operators.silu(graph, stack.projections.linear(hidden, f"{name}.in_proj_z"), f"{name}.gate")
    gated = graph.node("Mul", [summed, gate], f"{name}.gated")
    if not config.mamba_rms_norm:
        return stack.projections.linear(gated, f"{name}.out_proj")
    groups = graph.node("Reshape", [gated, graph.constant([0, 0, G, N // G * Y])], f"{name}.norm.groups")
    normed = stack.norm(groups, f"{name}.norm.plain", N // G * Y, kind="rms_plain")
    joined = graph.node("Reshape", [normed, graph.constant([0, 0, N * Y])], f"{name}.norm.joined")
    weight = stack.stored(f"{name}.norm.weight")
    return stack.projections.linear(graph.node("Mul", [joined, weight], f"{name}.norm"), f"{name}.out_proj")


def add_mamba2_memory(
    stack: Stack, hidden: str, name: str, states: Sequence[str], given: Sequence[str]
) -> tuple[str, str]:
    """Add what is written into the states of a layer; return what is read of them and the values, [B, T, N * Y].

    Source: CausalConvWithState and LinearAttention in onnxruntime's ContribOperators.md.
    """
    graph, config = stack.graph, stack.config
    G, N = config.linear_num_key_heads or 0, config.linear_num_value_heads or 0
    X, Y = config.linear_key_head_dim or 0, config.linear_value_head_dim or 0
    projected = stack.projections.linear(hidden, f"{name}.in_proj_xbc")
    bias = stack.stored(f"{name}.conv1d.bias")
    mixed = add_convolution(stack, projected, name, states[0], given[0], bias)
    parts = [f"{name}.values", f"{name}.keys_and_queries"]
    graph.node("Split", [mixed, graph.constant([N * Y, 2 * G * X])], parts, attributes={"axis": -1})
    heads = graph.node("Reshape", [parts[1], graph.constant([0, 0, 2 * G, X])], f"{name}.heads")
    keys, queries = both = [f"{name}.keys", f"{name}.queries"]
    share_heads(stack, heads, name, both)
    step = add_step(stack, hidden, name, "in_proj_dt")
    by_head = graph.node("Reshape", [parts[0], graph.constant([0, 0, N, Y])], f"{name}.values.heads")
    steps = graph.node("Unsqueeze", [step, graph.constant([-1])], f"{name}.step.of_head")
    product = graph.node("Mul", [by_head, steps], f"{name}.values.product")
    scaled = graph.node("Reshape", [product, graph.constant([0, 0, N * Y])], f"{name}.values.scaled")
    attributes = {"q_num_heads": N, "kv_num_heads": N, "update_rule": "gated", "scale": 1.0}
    inputs = [queries, keys, scaled, states[1], add_decay(stack, step, name)]
    read = graph.node("LinearAttention", inputs, [f"{name}.read", given[1]], MICROSOFT, attributes)
    return read, parts[0]

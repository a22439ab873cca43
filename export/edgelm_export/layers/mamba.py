"""Mamba in a decoder's graph: the twin of edgelm_training/layers/mamba.py, with the states of linear attention.

Shapes: B batch, T query tokens, N channels, X the size of a channel's state, R how many numbers make all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from edgelm_export.graph.graph import BATCH, FLOAT
from edgelm_export.layers.linear_attention import add_convolution, add_rates, add_step
from edgelm_export.layers.stack import Stack


def add_mamba(stack: Stack, hidden: str, name: str, states: Sequence[str], given: Sequence[str]) -> str:
    """Add a layer and its output projection.

    states: the names of the inputs. given: those of the outputs.
    """
    graph = stack.graph
    read, values = add_mamba_memory(stack, hidden, name, states, given)
    past = graph.node("Mul", [values, stack.stored(f"{name}.D")], f"{name}.past")
    summed = graph.node("Add", [read, past], f"{name}.read_and_past")
    gate = stack.operators.silu(graph, stack.projections.linear(hidden, f"{name}.in_proj_z"), f"{name}.gate")
    return stack.projections.linear(graph.node("Mul", [summed, gate], f"{name}.gated"), f"{name}.out_proj")


def add_mamba_memory(
    stack: Stack, hidden: str, name: str, states: Sequence[str], given: Sequence[str]
) -> tuple[str, str]:
    """Add what is written into the states of a layer; return what is read of them and the values, [B, T, N].

    Each number of a state has a decay of its own. `LinearAttention` takes such decays for heads of one value too, but
    would be given keys, queries and decays [B, T, N * X]: half a gigabyte of them for 512 tokens of a model of 3B.
    `Scan` makes those of one token at a time, and is as fast (docs/results/graph-and-settings.md).
    """
    graph, config = stack.graph, stack.config
    R, X = config.mamba_dt_rank or 0, config.linear_key_head_dim or 0
    bias = stack.stored(f"{name}.conv1d.bias")
    projected = stack.projections.linear(hidden, f"{name}.in_proj_x")
    values = add_convolution(stack, projected, name, states[0], given[0], bias)
    parts = [f"{name}.{part}" for part in ("dt", "b", "c")]
    made = stack.projections.linear(values, f"{name}.x_proj")
    graph.node("Split", [made, graph.constant([R, X, X])], parts, attributes={"axis": -1})
    if config.mamba_rms_norm:
        parts = [stack.norm(part, f"{part}_layernorm", size) for part, size in zip(parts, (R, X, X), strict=True)]
    step = add_step(stack, parts[0], name, "dt_proj")
    written = graph.node("Mul", [step, values], f"{name}.written")
    rates = add_rates(stack, name)
    last = graph.constant([-1])
    state = graph.node("Squeeze", [states[1], last], f"{name}.state")
    body = _step(stack, rates, last, graph.constant([1]))
    attributes = {"body": body, "num_scan_inputs": 4, "scan_input_axes": [1] * 4, "scan_output_axes": [1]}
    outputs = [f"{name}.state.new", f"{name}.read"]
    graph.node("Scan", [state, step, written, parts[1], parts[2]], outputs, attributes=attributes)
    graph.node("Unsqueeze", [outputs[0], last], given[1])
    return outputs[1], values


def _step(stack: Stack, rates: str, last: str, middle: str) -> onnx.GraphProto:
    """Make what is done with each token, of names of the graph around it: `rates`, and the axes -1 and 1.

    Source: Scan in the ONNX operators. In: a state [B, N, X], a token's step and what it writes [B, N], key and query
    [B, X]. Out: the new state, and what is read of it [B, N].
    """
    N, X = stack.config.linear_num_value_heads or 0, stack.config.linear_key_head_dim or 0
    made = (
        ("Unsqueeze", ["step", last], "step.column"),
        ("Mul", ["step.column", rates], "log_decay"),
        ("Exp", ["log_decay"], "decay"),
        ("Mul", ["state", "decay"], "kept"),
        ("Unsqueeze", ["written", last], "written.column"),
        ("Unsqueeze", ["key", middle], "key.row"),
        ("Mul", ["written.column", "key.row"], "added"),
        ("Add", ["kept", "added"], "state.new"),
        ("Unsqueeze", ["query", last], "query.column"),
        ("MatMul", ["state.new", "query.column"], "read.column"),
        ("Squeeze", ["read.column", last], "read"),
    )
    sizes = {"state": [N, X], "step": [N], "written": [N], "key": [X], "query": [X], "state.new": [N, X], "read": [N]}
    infos = [helper.make_tensor_value_info(name, FLOAT, [BATCH, *size]) for name, size in sizes.items()]
    nodes = [helper.make_node(operator, inputs, [output]) for operator, inputs, output in made]
    return helper.make_graph(nodes, "token", infos[:5], infos[5:])

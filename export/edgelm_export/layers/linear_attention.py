"""Linear attention in a decoder's graph: the twin of edgelm_training/layers/linear_attention.py.

Shapes: B batch, T query tokens, G key heads, N value heads, X and Y their dimensions, W channels of queries, keys and
values together, L tokens that a convolution sees.

A layer takes `past_key_values.{i}.conv_state` [B, W, L - 1], what its convolution reads of the tokens before, and
`past_key_values.{i}.recurrent_state` [B, N, X, Y], what is written of them; it gives the same as `present.{i}.…`. Past
and present may share memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.runtime.decoder_graph import STATES
from edgelm_export.graph.graph import BATCH, FLOAT, MICROSOFT
from edgelm_export.layers.stack import Stack

_L2_EPSILON = 1e-6


def add_linear_attention(stack: Stack, hidden: str, name: str, states: Sequence[str], given: Sequence[str]) -> str:
    """Add a layer, up to its output projection.

    states: the names of the inputs. given: those of the outputs.
    """
    graph, config = stack.graph, stack.config
    N, Y = config.linear_num_value_heads or 0, config.linear_value_head_dim or 0
    read = add_memory(stack, hidden, name, states, given)
    heads = graph.node("Reshape", [read, graph.constant([0, 0, N, Y])], f"{name}.read.heads")
    weight = stack.stored(f"{name}.norm.weight")
    epsilon = config.norm_eps if config.linear_norm_eps is None else config.linear_norm_eps
    normed = stack.operators.rms_norm(graph, heads, weight, epsilon, f"{name}.norm")
    joined = graph.node("Reshape", [normed, graph.constant([0, 0, N * Y])], f"{name}.norm.joined")
    gate = stack.operators.silu(graph, stack.projections.linear(hidden, f"{name}.in_proj_z"), f"{name}.gate")
    gated = graph.node("Mul", [joined, gate], f"{name}.gated")
    return stack.projections.linear(gated, f"{name}.out_proj")


def add_states(stack: Stack, i: int) -> tuple[list[str], list[str]]:
    """Declare the states of layer number `i`: the names of those that it takes, and of those that it gives."""
    graph, sizes = stack.graph, zip(STATES, stack.config.state_shapes, strict=True)
    shapes: dict[str, list[int | str]] = {part: [BATCH, *shape] for part, shape in sizes}
    taken = [graph.input(f"past_key_values.{i}.{part}", FLOAT, shape) for part, shape in shapes.items()]
    return taken, [graph.output(f"present.{i}.{part}", FLOAT, shape) for part, shape in shapes.items()]


def add_memory(stack: Stack, hidden: str, name: str, states: Sequence[str], given: Sequence[str]) -> str:
    """Add what is written into the states of a layer, and return what is read of them, [B, T, N * Y].

    Source: CausalConvWithState and LinearAttention in onnxruntime's ContribOperators.md.
    """
    graph, config = stack.graph, stack.config
    G, N = config.linear_num_key_heads or 0, config.linear_num_value_heads or 0
    X, Y = config.linear_key_head_dim or 0, config.linear_value_head_dim or 0
    mixed = add_convolution(stack, stack.projections.linear(hidden, f"{name}.in_proj_qkv"), name, states[0], given[0])
    parts = [f"{name}.queries_and_keys", f"{name}.values"]
    graph.node("Split", [mixed, graph.constant([2 * G * X, N * Y])], parts, attributes={"axis": -1})
    heads = graph.node("Reshape", [parts[0], graph.constant([0, 0, 2 * G, X])], f"{name}.heads")
    # x / sqrt(sum(x ** 2) + epsilon) as the norm that it is.
    ones = graph.weight(f"constant.length_one.{X}", np.full(X, X**-0.5, np.float32))
    normed = stack.operators.rms_norm(graph, heads, ones, _L2_EPSILON / X, f"{name}.heads.normed")
    both = [f"{name}.queries", f"{name}.keys"]
    share_heads(stack, normed, name, both)
    rate = graph.node("Sigmoid", [stack.projections.linear(hidden, f"{name}.in_proj_b")], f"{name}.rate")
    if config.linear_allow_neg_eigval:
        rate = graph.node("Mul", [rate, graph.constant(2.0, np.float32)], f"{name}.rate.doubled")
    decay = add_decay(stack, add_step(stack, hidden, name, "in_proj_a"), name)
    attributes = {"q_num_heads": N, "kv_num_heads": N, "update_rule": "gated_delta", "scale": X**-0.5}
    outputs = [f"{name}.read", given[1]]
    return graph.node("LinearAttention", [*both, parts[1], states[1], decay, rate], outputs, MICROSOFT, attributes)


def add_convolution(stack: Stack, projected: str, name: str, state: str, given: str, bias: str = "") -> str:
    """Sum each channel [B, T, W] over a token and those before it, and activate the sums.

    state, given: the names of the input and the output of what it reads of earlier tokens.
    """
    graph, swap = stack.graph, {"perm": [0, 2, 1]}
    channels = graph.node("Transpose", [projected], f"{name}.channels", attributes=swap)
    factors = stack.stored(f"{name}.conv1d.weight")
    summed = [f"{name}.conv1d.output", given]
    graph.node("CausalConvWithState", [channels, factors, bias, state], summed, MICROSOFT, {"activation": "silu"})
    return graph.node("Transpose", [summed[0]], f"{name}.mixed", attributes=swap)


def share_heads(stack: Stack, heads: str, name: str, parts: list[str]) -> None:
    """Give each value head the two vectors of its key head: of [B, T, 2 * G, X] the two `parts` [B, T, N * X]."""
    graph, config = stack.graph, stack.config
    G, N, X = config.linear_num_key_heads or 0, config.linear_num_value_heads or 0, config.linear_key_head_dim or 0
    if G < N:  # neighbouring value heads share a key head
        rows = [head // (N // G) + first for first in (0, G) for head in range(N)]
        heads = graph.node("Gather", [heads, graph.constant(rows)], f"{name}.heads.shared", attributes={"axis": 2})
    joined = graph.node("Reshape", [heads, graph.constant([0, 0, 2 * N * X])], f"{name}.heads.joined")
    graph.node("Split", [joined], parts, attributes={"axis": -1, "num_outputs": 2})


def add_step(stack: Stack, hidden: str, name: str, module: str) -> str:
    """Return how far each token goes [B, T, N], by the projection `module` of the layer and a bias."""
    graph = stack.graph
    bias = stack.stored(f"{name}.dt_bias")
    biased = graph.node("Add", [stack.projections.linear(hidden, f"{name}.{module}"), bias], f"{name}.step.biased")
    return graph.node("Softplus", [biased], f"{name}.step")


def add_rates(stack: Stack, name: str) -> str:
    """Return how fast each head, or each number of a state, is forgotten: below zero."""
    graph = stack.graph
    logarithm = stack.stored(f"{name}.A_log")
    return graph.node("Neg", [graph.node("Exp", [logarithm], f"{name}.A")], f"{name}.A.negative")


def add_decay(stack: Stack, step: str, name: str) -> str:
    """Return how much of each head's matrix stays with a step [B, T, N], as a logarithm."""
    return stack.graph.node("Mul", [step, add_rates(stack, name)], f"{name}.log_decay")

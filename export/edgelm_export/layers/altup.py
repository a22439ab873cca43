"""AltUp and LAuReL in a graph: the twin of edgelm_training/layers/altup.py, in the same order.

What predicts and corrects the streams stays in float32 in every precision, as routers do.
Shapes: B batch, T tokens, A residual streams, D hidden, F gates of a feed-forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgelm.architecture.layer_features import LEAST_POWER

if TYPE_CHECKING:
    from edgelm_export.layers.stack import Stack


def add_spread(stack: Stack, hidden: str) -> str:
    """Make the streams [B, T, A, D] of what is embedded: itself, and projections of it of the same power."""
    name = f"{stack.name}.altup_projections"
    first = _as_stream(stack, hidden, f"{name}.first")
    others = _projected(stack, [hidden] * (stack.config.altup_num_inputs - 1), first, name)
    return stack.graph.node("Concat", [first, others], f"{name}.streams", attributes={"axis": 2})


def add_merged(stack: Stack, streams: str) -> str:
    """Make one stream [B, T, D] of all: the mean of the first, and projections of the others of the same power."""
    graph, name, A = stack.graph, f"{stack.name}.altup_unembed_projections", stack.config.altup_num_inputs
    parts = [f"{name}.stream.{number}" for number in range(A)]
    graph.node("Split", [streams], parts, attributes={"axis": 2, "num_outputs": A})
    axis = graph.constant([2])
    read = [graph.node("Squeeze", [part, axis], f"{part}.alone") for part in parts[1:]]
    projected = _projected(stack, read, parts[0], name)
    every = graph.node("Concat", [parts[0], projected], f"{name}.streams", attributes={"axis": 2})
    return graph.node("ReduceMean", [every, axis], f"{name}.mean", attributes={"keepdims": 0})


def _projected(stack: Stack, read: list[str], as_of: str, name: str) -> str:
    """Project one vector for each stream but the first, and give all the power of `as_of` [B, T, 1, D]."""
    graph = stack.graph
    modules = [f"{name}.{number}" for number in range(len(read))]
    made = [stack.projections.linear(hidden, module) for hidden, module in zip(read, modules, strict=True)]
    streams = [_as_stream(stack, hidden, f"{module}.stream") for hidden, module in zip(made, modules, strict=True)]
    joined = graph.node("Concat", streams, f"{name}.joined", attributes={"axis": 2})
    least = graph.constant(LEAST_POWER, np.float32)
    power = graph.node("Max", [_power(stack, joined, f"{name}.own"), least], f"{name}.own_power")
    sizes = [graph.node("Sqrt", [each], f"{each}.root") for each in (_power(stack, as_of, f"{name}.wanted"), power)]
    factor = graph.node("Div", sizes, f"{name}.factor")
    return graph.node("Mul", [joined, factor], f"{name}.of_one_power")


def _power(stack: Stack, hidden: str, name: str) -> str:
    squares = stack.graph.node("Mul", [hidden, hidden], f"{name}.squares")
    return stack.graph.node("ReduceMean", [squares, stack.graph.constant([-1])], name, attributes={"keepdims": 1})


def _as_stream(stack: Stack, hidden: str, name: str) -> str:
    """Return [B, T, 1, D]."""
    return stack.graph.node("Unsqueeze", [hidden, stack.graph.constant([2])], name)


def add_prediction(stack: Stack, streams: str, name: str) -> tuple[str, str]:
    """Add the streams [B, T, A, D] as a layer expects them behind itself, and the first of them [B, T, D]."""
    graph, A = stack.graph, stack.config.altup_num_inputs
    first = _first(stack, streams, f"{name}.entering")
    shares = _shares(stack, first, name, "prediction_coefs")
    by_stream = graph.node("Reshape", [shares, graph.constant([0, 0, A, A])], f"{name}.prediction_coefs.by_stream")
    change = graph.node("MatMul", [by_stream, streams], f"{name}.change")
    predicted = graph.node("Add", [change, streams], f"{name}.predicted")
    return predicted, _first(stack, predicted, f"{name}.predicted.first")


def add_correction(stack: Stack, predicted: str, first: str, made: str, name: str) -> tuple[str, str]:
    """Add the streams [B, T, A, D] with what `first` lacks of `made`, and what gates the layer's features [B, T, D]."""
    graph, one = stack.graph, stack.graph.constant(1.0, np.float32)
    coefficients = _shares(stack, made, name, "correction_coefs")
    lacking = graph.node("Sub", [made, first], f"{name}.lacking")
    shares = graph.node("Add", [coefficients, one], f"{name}.shares")
    by_stream = graph.node("Unsqueeze", [shares, graph.constant([-1])], f"{name}.shares.by_stream")
    change = graph.node("Mul", [_as_stream(stack, lacking, f"{name}.lacking.stream"), by_stream], f"{name}.correction")
    corrected = graph.node("Add", [change, predicted], f"{name}.corrected")
    gating = _first(stack, corrected, f"{name}.corrected.first")
    if not stack.config.altup_correct_scale:
        return corrected, gating
    scale = f"{name}.correct_output_scale"
    return corrected, graph.node("Mul", [gating, stack.stored(scale)], f"{name}.gating")


def add_to_others(stack: Stack, streams: str, part: str, name: str) -> str:
    """Add a part [B, T, D] to all streams but the first."""
    graph, others = stack.graph, stack.config.altup_num_inputs - 1
    first, rest = parts = [f"{name}.kept", f"{name}.others"]
    graph.node("Split", [streams, graph.constant([1, others])], parts, attributes={"axis": 2})
    added = graph.node("Add", [rest, _as_stream(stack, part, f"{name}.part")], f"{name}.added")
    return graph.node("Concat", [first, added], f"{name}.streams", attributes={"axis": 2})


def _first(stack: Stack, streams: str, name: str) -> str:
    return stack.graph.node("Gather", [streams, stack.graph.constant(0)], name, attributes={"axis": 2})


def _shares(stack: Stack, hidden: str, name: str, coefficients: str) -> str:
    """Add what a token's router gives: [B, T, A * A] or [B, T, A]."""
    graph, step = stack.graph, f"{name}.{coefficients}"
    norm = _weight(stack, f"{name}.router_norm")
    addends = stack.addends.get(hidden, ())
    normed = stack.operators.rms_norm(graph, hidden, norm, stack.config.norm_eps, f"{step}.normed", addends)
    scores = graph.node("MatMul", [normed, _weight(stack, f"{name}.modality_router")], f"{step}.scores")
    scaled = graph.node("Mul", [scores, graph.constant(1 / stack.config.hidden_size, np.float32)], f"{step}.scaled")
    routed = graph.node("Tanh", [scaled], f"{step}.routed")
    return graph.node("MatMul", [routed, _weight(stack, step)], f"{step}.output")


def _weight(stack: Stack, module: str) -> str:
    """Store a weight once, a matrix as [in, out]."""
    name = f"{module}.weight"
    if stack.graph.has_weight(name):
        return name
    return stack.graph.weight(name, np.ascontiguousarray(stack.checkpoint.tensor(name).T))


def add_laurel(stack: Stack, attended: str, read: str, layer: str) -> str:
    """Add both ways over the root of two: what attention left, and what goes beside it of what it read."""
    graph, name = stack.graph, f"{layer}.laurel"
    thin = stack.projections.linear(read, f"{name}.linear_left")
    made = stack.norm(stack.projections.linear(thin, f"{name}.linear_right"), f"{name}.post_laurel_norm")
    beside = graph.node("Add", [read, made], f"{name}.beside")
    both = graph.node("Add", [attended, beside], f"{name}.both")
    return graph.node("Mul", [both, graph.constant(0.5**0.5, np.float32)], f"{name}.output")


def add_thinned(stack: Stack, gate: str, cutoff: float, name: str) -> str:
    """Add by how much each gate [B, T, F] is above their mean and `cutoff` standard deviations, or nothing."""
    graph, name = stack.graph, f"{name}.thinned"
    mean = graph.node("ReduceMean", [gate, graph.constant([-1])], f"{name}.mean", attributes={"keepdims": 1})
    apart = graph.node("Sub", [gate, mean], f"{name}.apart")
    deviation = graph.node("Sqrt", [_power(stack, apart, f"{name}.variance")], f"{name}.deviation")
    factor = graph.constant(cutoff, np.float32)
    above = graph.node("Mul", [deviation, factor], f"{name}.above")
    lowest = graph.node("Add", [mean, above], f"{name}.lowest")
    return graph.node("Relu", [graph.node("Sub", [gate, lowest], f"{name}.left")], f"{name}.output")

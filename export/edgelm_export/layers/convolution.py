"""Short convolutions in a decoder's graph (LFM2): the twin of edgelm_training/layers/convolution.py.

Shapes: B batch, T query tokens, D hidden, L tokens that a convolution sees, itself the last.
"""

from __future__ import annotations

import weakref

from edgelm.runtime.decoder_graph import PAST_CONV, PRESENT_CONV
from edgelm_export.graph.graph import BATCH, FLOAT
from edgelm_export.layers.stack import Stack


class Convolutions:
    """Add the convolutions of a stack, with one input and one output for what all of them read of earlier tokens."""

    def __init__(self, stack: Stack) -> None:
        """Take the input apart, [B, L - 1, D] for each layer that has a convolution."""
        # Weak: in a cycle, the stack's embedding would stay until Python looks for cycles, beside the package's check.
        self._stack: Stack = weakref.proxy(stack)
        graph, config = stack.graph, stack.config
        layers = [i for i in range(config.num_hidden_layers) if config.is_conv(i)]
        self._past = {i: f"{PAST_CONV}.{i}" for i in layers}
        self._present: list[str] = []
        if layers:
            shape: list[int | str] = [BATCH, 1, (config.conv_L_cache or 0) - 1, config.conv_channels]
            past = graph.input(PAST_CONV, FLOAT, shape)
            rows = graph.node("Squeeze", [past, graph.constant([1])], f"{PAST_CONV}.rows")
            sizes = graph.constant([config.hidden_size] * len(layers))
            graph.node("Split", [rows, sizes], list(self._past.values()), attributes={"axis": -1})

    def end(self) -> None:
        """Give what the convolutions will read of the new tokens."""
        if self._present:
            graph = self._stack.graph
            rows = graph.node("Concat", self._present, f"{PRESENT_CONV}.rows", attributes={"axis": -1})
            graph.output(PRESENT_CONV, FLOAT, [BATCH, 1, "tokens", self._stack.config.conv_channels])
            graph.node("Unsqueeze", [rows, graph.constant([1])], PRESENT_CONV)

    def add(self, hidden: str, i: int) -> str:
        """Sum each channel over a token and the L - 1 before it, between two gates."""
        stack, graph, name = self._stack, self._stack.graph, self._name(i)
        gated, closing = self.opened(hidden, i)
        rows = graph.node("Concat", [self._past[i], gated], f"{name}.rows", attributes={"axis": 1})
        # ONNX Runtime takes the constant weight [D, 1, L] apart when it loads the graph.
        weight_D1L = stack.stored(f"{name}.conv.weight")
        by_place_L1D = graph.node("Transpose", [weight_D1L], f"{name}.conv.by_place", attributes={"perm": [2, 1, 0]})
        before = (stack.config.conv_L_cache or 0) - 1
        factors = [f"{name}.conv.factor.{place}" for place in range(before + 1)]
        graph.node("Split", [by_place_L1D], factors, attributes={"axis": 0, "num_outputs": before + 1})
        summed = ""
        for place, factor in enumerate(factors):
            bounds = [graph.constant([bound]) for bound in (place, place - before, 1)]
            seen = gated if place == before else graph.node("Slice", [rows, *bounds], f"{name}.seen.{place}")
            product = graph.node("Mul", [seen, factor], f"{name}.product.{place}")
            summed = graph.node("Add", [summed, product], f"{name}.sum.{place}") if summed else product
        if stack.config.conv_bias:
            bias = stack.stored(f"{name}.conv.bias")
            summed = graph.node("Add", [summed, bias], f"{name}.biased")
        closed = graph.node("Mul", [closing, summed], f"{name}.closed")
        return stack.projections.linear(closed, f"{name}.out_proj")

    def opened(self, hidden: str, i: int) -> tuple[str, str]:
        """Return what is behind the first gate, which is what later tokens see, and the second gate."""
        graph, name = self._stack.graph, self._name(i)
        opening, closing, value = parts = [f"{name}.{part}" for part in ("opening_gate", "closing_gate", "value")]
        projected = self._stack.projections.linear(hidden, f"{name}.in_proj")
        graph.node("Split", [projected], parts, attributes={"axis": -1, "num_outputs": 3})
        self._present.append(graph.node("Mul", [opening, value], f"{name}.gated"))
        return self._present[-1], closing

    def _name(self, i: int) -> str:
        return f"{self._stack.name}.layers.{i}.conv"

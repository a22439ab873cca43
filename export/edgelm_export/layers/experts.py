"""Experts in the graph: one operator a layer that chooses and computes them, in floats (MoE) or on a grid (QMoE).

On a CPU they know experts gated by silu; others have products of their own (grouped_experts.py).
The operators compute the chosen experts alone. They want one grid for all of a layer's experts: where a recipe gives
them several, all move to the finest of those, which loses nothing. The router stays in float32: it is small, and an
error there chooses another expert.
Shapes: E experts, D hidden, F features of an expert. Gates and ups alternate in one tensor, [E, 2 F, D].
Source: the operator specifications of com.microsoft.MoE and com.microsoft.QMoE.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.architecture.quantization_recipe import STANDARD
from edgelm.config import SPARSEMIXER_MARGIN, ModelConfig
from edgelm.errors import ExportError
from edgelm_export.graph.graph import BOOL, MICROSOFT, Graph
from edgelm_export.layers.grouped_experts import add_grouped_experts
from edgelm_export.layers.projection import Projections
from edgelm_export.quantize.finer_grid import on_finer_grid
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.quantize.portions import Stored

if TYPE_CHECKING:
    from edgelm_export.layers.stack import Stack

_BITS = (4, 8)  # what QMoE has on every CPU since ONNX Runtime 1.28
_SMALLEST_BLOCK = 16
# Activations rounded to 8 bits: three times as fast as in float32, and a row has the same bits in any company. Known
# since ONNX Runtime 1.31 (docs/results/graph-and-settings.md).
_ACCURACY_LEVEL = 4
_NEVER = -1e30  # a score that no expert with a weight is below


def add_experts(stack: Stack, hidden: str, routed_by: str, name: str) -> str:
    """Add the feed-forward of one layer with experts, such as "model.layers.0.mlp"; `routed_by` is the router's input.

    Raises:
        ExportError: the ONNX standard has no operator for it.
    """
    graph, projections, config = stack.graph, stack.projections, stack.config
    if not config.mlp_gated or config.hidden_act != "silu":
        weights, chosen = _chosen(stack, _router(stack, routed_by, name), f"{name}.gate")
        if config.norm_topk_prob:
            weights = graph.node("Div", [weights, _sum(graph, weights, f"{name}.gate")], f"{name}.gate.normed")
        if config.routed_scaling_factor != 1:
            factor = graph.constant(config.routed_scaling_factor, np.float32)
            weights = graph.node("Mul", [weights, factor], f"{name}.gate.scaled")
        return add_grouped_experts(stack, hidden, weights, chosen, name)
    if projections.operator_set == STANDARD:
        raise ExportError(
            f"A {config.model_type} model has experts, which no operator of the ONNX standard computes. Export it with "
            "--operators onnxruntime."
        )
    scores, factor = _routing(stack, routed_by, name)
    shape = graph.constant([-1, config.num_experts])
    logits = graph.node("Reshape", [scores, shape], f"{name}.gate.rows")  # one row for each position of the batch
    first, second = _matrices(stack, name)
    names = [f"{name}.experts.gate_up_proj.weight", f"{name}.experts.down_proj.weight"]
    biases = _biases(stack, name)
    output = f"{name}.weighted" if factor else f"{name}.output"
    grid = _common_grid(config, [*first, *second])
    if grid is None:
        stacks = [
            _float_stack(graph, projections, stem, stored) for stem, stored in zip(names, (first, second), strict=True)
        ]
        inputs = [hidden, logits, stacks[0], biases[0], stacks[1], biases[1]]
        graph.node("MoE", inputs, output, MICROSOFT, _attributes(config))
    else:
        parts = [
            _packed_stack(graph, stem, [on_finer_grid(w, *grid) for w in stored if isinstance(w, PackedWeight)])
            for stem, stored in zip(names, (first, second), strict=True)
        ]
        inputs = [hidden, logits, *parts[0][:2], biases[0], *parts[1][:2], biases[1]]
        inputs += ["", "", "", parts[0][2], parts[1][2]] if grid[2] else []
        on_grid = {"expert_weight_bits": grid[0], "block_size": grid[1]}
        on_grid |= {"accuracy_level": _ACCURACY_LEVEL} if grid[0] == 4 else {}  # 8 bits compute so by themselves
        graph.node("QMoE", inputs, output, MICROSOFT, _attributes(config) | on_grid)
    return graph.node("Mul", [output, factor], f"{name}.output") if factor else output


def no_block_fits(config: ModelConfig) -> bool:
    """Tell whether all experts are stored in floats, whatever the recipe: no block divides what they read."""
    if not config.num_experts or not config.mlp_gated or config.hidden_act != "silu":  # others have their own products
        return False
    return math.gcd(config.hidden_size, config.expert_size) % _SMALLEST_BLOCK > 0


def _matrices(stack: Stack, name: str) -> tuple[list[Stored], list[Stored]]:
    """Read what each expert begins with, gates and ups in turn, and what it ends with."""
    experts, read = [f"{name}.experts.{expert}" for expert in range(stack.config.num_experts)], stack.projections.read
    first = [_alternating(read(f"{expert}.gate_proj.weight"), read(f"{expert}.up_proj.weight")) for expert in experts]
    return first, [read(f"{expert}.down_proj.weight") for expert in experts]


def _biases(stack: Stack, name: str) -> list[str]:
    """Store the biases [E, 2 F] and [E, D] of the experts; two empty names where they have none."""
    graph, config = stack.graph, stack.config
    if not config.mlp_bias:
        return ["", ""]
    experts = [f"{name}.experts.{expert}" for expert in range(config.num_experts)]
    gate_EF, up_EF, down_ED = (
        np.stack([stack.checkpoint.tensor(f"{expert}.{part}_proj.bias") for expert in experts])
        for part in ("gate", "up", "down")
    )
    alternating = np.stack([gate_EF, up_EF], axis=2).reshape(len(gate_EF), -1)
    return [
        graph.weight(f"{name}.experts.gate_up_proj.bias", alternating),
        graph.weight(f"{name}.experts.down_proj.bias", down_ED),
    ]


def _router(stack: Stack, hidden: str, name: str) -> str:
    """Add the scores [B, T, E] of all experts."""
    graph, weight = stack.graph, f"{name}.gate.weight"
    weight_DE = graph.weight(weight, np.ascontiguousarray(stack.checkpoint.tensor(weight).T))
    logits = graph.node("MatMul", [hidden, weight_DE], f"{name}.gate.output")
    if stack.config.router_bias:
        logits = graph.node("Add", [logits, stack.stored(f"{name}.gate.bias")], f"{name}.gate.biased")
    return logits


def _routing(stack: Stack, hidden: str, name: str) -> tuple[str, str]:
    """Return what the operator chooses and weights experts by, [B, T, E], and what multiplies its output, or "".

    It takes the largest scores and gives those experts their softmax, weights that sum to one: ONNX Runtime 1.28
    computes something else in a whole graph with normalize_routing_weights off. Where weights are made or chosen
    otherwise, the logarithms of the chosen ones stand among scores that are never chosen.
    """
    graph, config, gate = stack.graph, stack.config, f"{name}.gate"
    scores = _router(stack, hidden, name)
    factor = "" if config.routed_scaling_factor == 1 else graph.constant(config.routed_scaling_factor, np.float32)
    is_plain = config.scoring_func == "softmax" and not config.expert_choice_bias and config.n_group == 1
    if is_plain and config.norm_topk_prob:
        return scores, factor
    chosen_weights, chosen_experts = _chosen(stack, scores, gate)
    if not is_plain:
        logarithms = graph.node("Log", [chosen_weights], f"{gate}.chosen_logarithms")
        never = [graph.constant(_NEVER, np.float32), graph.node("Shape", [scores], f"{gate}.shape")]
        inputs = [graph.node("Expand", never, f"{gate}.never"), chosen_experts, logarithms]
        scores = graph.node("ScatterElements", inputs, f"{gate}.routing", attributes={"axis": -1})
    if config.norm_topk_prob:
        return scores, factor
    share = _sum(graph, chosen_weights, gate)
    return scores, graph.node("Mul", [share, factor], f"{gate}.scaled_share") if factor else share


def _chosen(stack: Stack, scores: str, gate: str) -> tuple[str, str]:
    """Return the weights of the chosen experts, of a softmax of all or a sigmoid of each, and which they are."""
    graph, config = stack.graph, stack.config
    if config.scoring_func == "sparsemixer":
        return _sparsemixer(graph, config.num_experts_per_tok, scores, gate)
    if config.scoring_func == "sigmoid":
        weights = graph.node("Sigmoid", [scores], f"{gate}.weights")
    else:
        weights = graph.node("Softmax", [scores], f"{gate}.weights", attributes={"axis": -1})
    chosen_weights, chosen_experts = f"{gate}.chosen", f"{gate}.chosen_experts"
    preferred, outputs = weights, [chosen_weights, chosen_experts]
    if config.expert_choice_bias:
        bias = stack.stored(f"{gate}.e_score_correction_bias")
        preferred, outputs[0] = graph.node("Add", [weights, bias], f"{gate}.preferred"), f"{gate}.most_preferred"
    if config.n_group > 1:
        preferred, outputs[0] = _within_groups(graph, config, preferred, gate), f"{gate}.most_preferred"
    graph.node("TopK", [preferred, graph.constant([config.num_experts_per_tok])], outputs)
    if preferred != weights:
        graph.node("GatherElements", [weights, chosen_experts], chosen_weights, attributes={"axis": -1})
    return chosen_weights, chosen_experts


def _sparsemixer(graph: Graph, count: int, scores: str, gate: str) -> tuple[str, str]:
    """Return the share that each of the best experts has among those that are left and close to it, and which."""
    best, chosen = f"{gate}.best", f"{gate}.chosen_experts"
    graph.node("TopK", [scores, graph.constant([count])], [best, chosen])
    sizes, shares = graph.node("Abs", [scores], f"{gate}.sizes"), []
    zero, margin = (graph.constant(value, np.float32) for value in (0, SPARSEMIXER_MARGIN))
    for place in range(count):
        name = f"{gate}.{place}"
        own = graph.node("Gather", [best, graph.constant([place])], f"{name}.score", attributes={"axis": -1})
        below = graph.node("Sub", [scores, own], f"{name}.below")
        size = graph.node("Max", [sizes, own], f"{name}.size")
        distance = graph.node("Div", [graph.node("Neg", [below], f"{name}.gap"), size], f"{name}.distance")
        is_far = graph.node("Greater", [distance, margin], f"{name}.is_far")
        close = graph.node("Where", [is_far, zero, graph.node("Exp", [below], f"{name}.ratios")], f"{name}.close")
        if place:  # those before it are out
            inputs = [chosen, graph.constant([0]), graph.constant([place]), graph.constant([-1])]
            before = graph.node("Slice", inputs, f"{name}.before")
            nothing = graph.node("Expand", [zero, graph.node("Shape", [before], f"{name}.count")], f"{name}.nothing")
            close = graph.node("ScatterElements", [close, before, nothing], f"{name}.left", attributes={"axis": -1})
        shares.append(graph.node("Reciprocal", [_sum(graph, close, name)], f"{name}.weight"))
    return graph.node("Concat", shares, f"{gate}.chosen", attributes={"axis": -1}), chosen


def _within_groups(graph: Graph, config: ModelConfig, preferred: str, gate: str) -> str:
    """Return the scores that experts are chosen by, with no chance for those outside the chosen groups."""
    G, name = config.n_group, f"{gate}.groups"
    by_group = graph.node("Reshape", [preferred, graph.constant([0, 0, G, -1])], f"{name}.scores")
    graph.node("TopK", [by_group, graph.constant([2])], [f"{name}.best", f"{name}.best_experts"])
    sums = graph.node("ReduceSum", [f"{name}.best", graph.constant([-1])], f"{name}.sums", attributes={"keepdims": 0})
    count = graph.constant([config.topk_group])
    graph.node("TopK", [sums, count], [f"{name}.chosen_sums", f"{name}.chosen"])
    marks = [f"{name}.chosen", graph.constant(G), graph.constant([0, 1])]
    chosen_BTKG = graph.node("OneHot", marks, f"{name}.marks", attributes={"axis": -1})
    kept = {"keepdims": 0}
    count_BTG = graph.node("ReduceSum", [chosen_BTKG, graph.constant([2])], f"{name}.counts", attributes=kept)
    column = graph.node("Unsqueeze", [count_BTG, graph.constant([-1])], f"{name}.column")
    is_chosen = graph.node("Cast", [column], f"{name}.is_chosen", attributes={"to": BOOL})
    never = graph.constant(_NEVER, np.float32)
    within = graph.node("Where", [is_chosen, by_group, never], f"{name}.within")
    return graph.node("Reshape", [within, graph.constant([0, 0, config.num_experts])], f"{name}.preferred")


def _sum(graph: Graph, weights: str, gate: str) -> str:
    """Sum the weights of a token's chosen experts, [B, T, 1]."""
    return graph.node("ReduceSum", [weights, graph.constant([-1])], f"{gate}.share", attributes={"keepdims": 1})


def _attributes(config: ModelConfig) -> dict[str, Any]:
    clamped = config.swiglu_limit is not None
    return {
        "k": config.num_experts_per_tok,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,  # gates and ups alternate
        "activation_alpha": config.swiglu_alpha if clamped else 1.0,
        "activation_beta": 1.0 if clamped else 0.0,
        "swiglu_limit": config.swiglu_limit,
        "normalize_routing_weights": 1,
    }


def _alternating(gate: Stored, up: Stored) -> Stored:
    """Put the rows of two matrices in turn; two grids become the finer."""
    if not isinstance(gate, PackedWeight) or not isinstance(up, PackedWeight):
        gate, up = (unpack(weight) if isinstance(weight, PackedWeight) else weight for weight in (gate, up))
        return _in_turn(gate, up)
    if gate.layout != up.layout:
        bits, block_size = max(gate.bits, up.bits), min(gate.block_size, up.block_size)
        has_zeros = gate.zero_points is not None or up.zero_points is not None
        gate, up = (on_finer_grid(weight, bits, block_size, has_zeros) for weight in (gate, up))
    zeros = None
    if gate.zero_points is not None and up.zero_points is not None:
        zeros = _in_turn(gate.zero_points, up.zero_points)
    packed, scales = _in_turn(gate.packed, up.packed), _in_turn(gate.scales, up.scales)
    return dataclasses.replace(gate, packed=packed, scales=scales, zero_points=zeros)


def _in_turn(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    return np.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _common_grid(config: ModelConfig, weights: Sequence[Stored]) -> tuple[int, int, bool] | None:
    """Find a grid that holds all weights exactly: bits, block size, and whether it has zero points.

    None where one is in floats, or where no block size divides the inputs of both projections, as QMoE needs.
    """
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    if len(packed) < len(weights):
        return None
    block_size = min(weight.block_size for weight in packed)
    while block_size >= _SMALLEST_BLOCK and (config.hidden_size % block_size or config.expert_size % block_size):
        block_size //= 2
    if block_size < _SMALLEST_BLOCK:
        return None
    most = max(weight.bits for weight in packed)
    bits = next(bits for bits in _BITS if most <= bits)
    return bits, block_size, any(weight.zero_points is not None for weight in packed)


def _float_stack(graph: Graph, projections: Projections, name: str, weights: Sequence[Stored]) -> str:
    floats = [unpack(weight) if isinstance(weight, PackedWeight) else weight for weight in weights]
    dtypes = {weight.dtype for weight in floats}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    stack = np.stack([weight.astype(dtype, copy=False) for weight in floats])
    return projections.widened(graph.weight(name, stack), dtype)


def _packed_stack(graph: Graph, name: str, weights: Sequence[PackedWeight]) -> list[str]:
    """Store integers [E, N, bytes], scales [E, N, blocks] and, where there are any, zero points [E, N, bytes]."""
    rows = len(weights[0].packed)
    parts = [
        graph.weight(name, np.stack([weight.packed.reshape(rows, -1) for weight in weights])),
        graph.weight(f"{name}.scales", np.stack([weight.scales for weight in weights])),
    ]
    zeros = [weight.zero_points for weight in weights if weight.zero_points is not None]
    return [*parts, graph.weight(f"{name}.zero_points", np.stack(zeros))] if zeros else parts

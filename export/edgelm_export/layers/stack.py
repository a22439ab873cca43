"""Stack: what the decoder's graph and the encoder's have in common, from the token ids to the last block.

Shapes: B batch, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from edgelm.architecture.layer_features import EXPERT_NORMS
from edgelm.architecture.quantization_recipe import Precision
from edgelm.architecture.rope import sinusoidal_table, table_frequencies
from edgelm.config import SINUSOIDS, XIELU_BETA, ModelConfig
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.folded import padded_rotary_dim
from edgelm_export.checkpoints.tensor_map import HEAD_FACTORS
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import Graph
from edgelm_export.layers.altup import add_correction, add_laurel, add_prediction, add_thinned, add_to_others
from edgelm_export.layers.experts import add_experts
from edgelm_export.layers.layer_operators import LAYER_OPERATORS
from edgelm_export.layers.projection import Projections
from edgelm_export.layers.standard_attention import split_heads
from edgelm_export.quantize.channel_scales import ScaledHead
from edgelm_export.quantize.packed import PackedWeight
from edgelm_export.quantize.portions import Stored

# Besides SiLU, which is one of the operators of a layer.
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "relu2": ("Relu", {}),  # squared in a second node
}
# The norms of folded checkpoints: whether they divide by the root mean square alone, have weights, and have a bias.
_NORMS = {
    "rms": (True, True, False),
    "rms_plain": (True, False, False),
    "layer": (False, True, True),
    "layer_no_bias": (False, True, False),
    "layer_plain": (False, False, False),
}


class Stack(ABC):
    """Write one stack into a graph of its own.

    config: the stack's. name: what the names of its tensors begin with.
    """

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, name: str, precision: Precision, data: ExternalData
    ) -> None:
        self.checkpoint, self.config, self.name = checkpoint, config, name
        self.graph = Graph(data)
        self.operators = LAYER_OPERATORS[precision.operators]
        self.projections = Projections(self.graph, ScaledHead(checkpoint), precision)
        self.addends: dict[str, tuple[str, str]] = {}  # of each sum on the residual stream

    @abstractmethod
    def positions(self) -> str:
        """Count the positions of the tokens, [B, T] or [T]."""

    @abstractmethod
    def attention(self, hidden: str, i: int) -> str:
        """Add the self-attention of a block, up to its output projection."""

    def embedding(self) -> str:
        """Look up the token ids, and add what there is of positions and a norm."""
        graph, config = self.graph, self.config
        name = f"{self.name}.embed_tokens" if config.own_embedding else "model.embed_tokens"
        hidden, self.tied_parts, self.tied_weight = self.looked_up(name)
        if config.tie_word_embeddings:
            hidden = self.divided(hidden, f"{name}.divided")
        if config.embedding_multiplier != 1.0:
            multiplier = graph.constant(config.embedding_multiplier, np.float32)
            hidden = graph.node("Mul", [hidden, multiplier], f"{name}.multiplied")
        if config.embedding_norm_first:
            hidden = self.norm(hidden, f"{self.name}.embed_norm")
        if config.position in ("learned", *SINUSOIDS):
            hidden = graph.node("Add", [hidden, self.position_embedding()], f"{self.name}.embed_positions.added")
        is_last = config.embedding_norm and not config.embedding_norm_first
        return self.norm(hidden, f"{self.name}.embed_norm") if is_last else hidden

    def cos_and_sin(self, kind: str) -> list[str]:
        """Make the tables [C, R/2] of the positions and their frequencies, all of them constants.

        So ONNX Runtime makes them once, when it loads the graph, and no file holds them: for a context of 32,768 and
        heads of 256 they are 34 MB (docs/results/graph-and-settings.md). edgelm's runtime knows them by these names,
        and gives tables of its own in their place (edgelm/runtime/rotation_tables.py).
        """
        graph, config, name = self.graph, self.config, f"model.rope.{kind}"
        length = config.max_position_embeddings
        frequencies, attention_factor = table_frequencies(config, length, kind)
        bounds = [graph.constant(bound, np.float32) for bound in (0.0, float(length), 1.0)]
        positions_C = graph.node("Range", bounds, f"{name}.positions")
        positions_C1 = graph.node("Unsqueeze", [positions_C, graph.constant([1])], f"{name}.column")
        turning, padded = config.turning_dim(kind) // 2, padded_rotary_dim(config, kind) // 2
        filling = (0, padded - turning)  # pairs that turn by no angle
        stored = graph.weight(f"{name}.frequencies", np.pad(frequencies[..., :turning], ((0, 0), (0, 0), filling)))
        products = graph.node("Mul", [positions_C1, stored], f"{name}.products")
        angles = graph.node("Reshape", [products, graph.constant([-1, padded])], f"{name}.angles")
        tables = [graph.node(function, [angles], f"{angles}.{function.lower()}") for function in ("Cos", "Sin")]
        if attention_factor == 1:
            return tables
        factors = np.pad(np.full(turning, attention_factor, np.float32), filling, constant_values=1)
        factor = graph.weight(f"{name}.attention_factors", factors)
        return [graph.node("Mul", [table, factor], f"{table}.scaled") for table in tables]

    def looked_up(self, name: str, ids: str = "input_ids") -> tuple[str, list[str], Stored]:
        """Look up the rows of the token ids, or of others, in a table; return them, and the table in the graph."""
        graph, weight = self.graph, self.projections.read(f"{name}.weight")
        if not isinstance(weight, PackedWeight):
            parts = [graph.weight(f"{name}.weight", weight)]
            rows = graph.node("Gather", [parts[0], ids], f"{name}.output")
            return self.projections.widened(rows, weight.dtype), parts, weight
        operators = self.projections.operators
        parts = operators.store(graph, name, weight)
        return operators.rows(graph, name, parts, weight, ids), parts, weight

    def features_of_layers(self, hidden: str) -> None:
        """Make the features [B, T, P] that each layer has of the tokens beside the stream, where they have some."""
        graph, config, P = self.graph, self.config, self.config.hidden_size_per_layer_input
        if not P:
            return
        table, projection = f"{self.name}.embed_tokens_per_layer", f"{self.name}.per_layer_model_projection"
        rows, _, _ = self.looked_up(table, self.ids_with_features())
        multiplier, factor = (graph.constant(value, np.float32) for value in ((P / 2) ** 0.5, config.hidden_size**-0.5))
        embedded = graph.node("Mul", [rows, multiplier], f"{table}.multiplied")
        projected = graph.node("Mul", [self.projections.linear(hidden, projection), factor], f"{projection}.multiplied")
        split = graph.constant([0, 0, -1, P])
        heads = graph.node("Reshape", [projected, split], f"{projection}.layers")
        normed = self.norm(heads, f"{self.name}.per_layer_projection_norm", P)
        halved = graph.node("Mul", [normed, graph.constant(0.5**0.5, np.float32)], f"{projection}.halved")
        joined = graph.node("Reshape", [halved, graph.constant([0, 0, config.per_layer_width])], f"{projection}.joined")
        both = graph.node("Add", [embedded, joined], f"{self.name}.features")
        parts = [f"{self.name}.layers.{i}.features" for i in range(config.num_hidden_layers)]
        graph.node("Split", [both], parts, attributes={"axis": -1, "num_outputs": len(parts)})

    def ids_with_features(self) -> str:
        """Return the token ids, in the place of those that have no row among the features the first."""
        graph, rows = self.graph, self.config.per_layer_rows
        if rows >= self.config.vocab_size:
            return "input_ids"
        has_row = graph.node("Less", ["input_ids", graph.constant(rows)], "input_ids.have_features")
        return graph.node("Where", [has_row, "input_ids", graph.constant(0)], "input_ids.with_features")

    def stored(self, name: str) -> str:
        """Store a tensor of the checkpoint as it is, and return its name."""
        return self.graph.weight(name, self.checkpoint.tensor(name))

    def divided(self, hidden: str, name: str) -> str:
        """Divide the channels [..., D] that the head's stored weights are multiplied by, where they are."""
        divisors = self.checkpoint.head_divisors
        if divisors is None:
            return hidden
        if not self.graph.has_weight(HEAD_FACTORS):
            self.graph.weight(HEAD_FACTORS, np.float32(1) / divisors)
        return self.graph.node("Mul", [hidden, HEAD_FACTORS], name)

    def position_embedding(self) -> str:
        """Gather the rows of the tokens' positions."""
        graph, name = self.graph, f"{self.name}.embed_positions"
        table = (
            self.checkpoint.tensor(f"{name}.weight")
            if self.config.position == "learned"
            else sinusoidal_table(self.config, self.config.max_position_embeddings)
        )
        return graph.node("Gather", [graph.weight(f"{name}.weight", table), self.positions()], f"{name}.output")

    def block(self, hidden: str, i: int) -> str:
        """Add block number `i`."""
        config = self.config
        layer = f"{self.name}.layers.{i}"
        before_attention, after_attention, before_mlp, after_mlp = config.block_norms(i)
        has_streams, altup, streams, predicted = config.altup_num_inputs > 1, f"{layer}.altup", "", ""
        if has_streams:
            streams, predicted = add_prediction(self, hidden, altup)
            hidden = predicted
        attended, attention_input = hidden, self.block_norm(hidden, layer, before_attention)
        if config.mixes(i):
            attention = self.attention(attention_input, i)
            attended = self.added(hidden, attention, layer, after_attention, "attention_residual")
            attended = add_laurel(self, attended, attention_input, layer) if config.laurel_rank else attended
            attended = self.crossed(attended, layer, i)
        stream = hidden if config.parallel_residual else attended
        hidden = attended
        if config.has_feed_forward(i):
            is_shared = config.norm_placement == "shared" and config.mixes(i)
            mlp_input = attention_input if is_shared else self.block_norm(stream, layer, before_mlp)
            has_experts, mlp = config.has_experts(i), f"{layer}.mlp"
            cutoff = config.gate_cutoff(i)
            made = self.experts(mlp_input, stream, mlp) if has_experts else self.dense(mlp_input, mlp, cutoff)
            hidden = self.added(attended, made, layer, after_mlp, "residual")
        if has_streams:
            streams, gating = add_correction(self, streams, predicted, hidden, altup)
            return add_to_others(self, streams, self.gated_features(gating, layer), altup)
        if config.hidden_size_per_layer_input:
            hidden = self.sum(hidden, self.gated_features(hidden, layer), f"{layer}.features_residual")
        if not config.layer_scalar:
            return hidden
        name = f"{layer}.layer_scalar"
        scalar = self.stored(name)
        return self.graph.node("Mul", [hidden, scalar], f"{layer}.scaled")

    def gated_features(self, hidden: str, layer: str) -> str:
        """Make of the layer's own features of the tokens, gated by the stream, what is added to it."""
        gate, projection = f"{layer}.per_layer_input_gate", f"{layer}.per_layer_projection"
        gates = self.activation(self.projections.linear(hidden, gate), gate)
        gated = self.graph.node("Mul", [gates, f"{layer}.features"], f"{gate}.gated")
        return self.norm(self.projections.linear(gated, projection), f"{layer}.post_per_layer_input_norm")

    def crossed(self, hidden: str, layer: str, i: int) -> str:
        """Add what cross-attention brings; nothing, in a stack that has none."""
        return hidden

    def gated(self, attended: str, hidden: str, name: str, i: int) -> str:
        """Multiply what heads of layer i gather by a gate of each number, or of each head."""
        graph, N, head_dim = self.graph, self.config.query_heads(i), self.config.head_size(i)
        operator = {"sigmoid": "Sigmoid", "softplus": "Softplus"}[self.config.attention_gate_act]
        gate = graph.node(operator, [self.projections.linear(hidden, f"{name}.gate_proj")], f"{name}.gate")
        if not self.config.attention_gate_per_head:
            return graph.node("Mul", [attended, gate], f"{name}.gated")
        by_head = graph.node("Reshape", [attended, graph.constant([0, 0, N, head_dim])], f"{name}.by_head")
        of_heads = graph.node("Unsqueeze", [gate, graph.constant([-1])], f"{name}.gate.of_heads")
        product = graph.node("Mul", [by_head, of_heads], f"{name}.gated.by_head")
        return graph.node("Reshape", [product, graph.constant([0, 0, N * head_dim])], f"{name}.gated")

    def added(self, hidden: str, part: str, layer: str, norm: str | None, name: str) -> str:
        """Add what a part makes to the residual stream, behind the norm or before it."""
        if self.config.norm_placement == "residual":
            return self.block_norm(self.sum(hidden, part, f"{layer}.{name}"), layer, norm)
        return self.sum(hidden, self.block_norm(part, layer, norm), f"{layer}.{name}")

    def sum(self, hidden: str, part: str, name: str) -> str:
        """Add two of the same shape, and note what they are for a norm that reads their sum."""
        self.addends[name] = (hidden, part)
        return self.graph.node("Add", [hidden, part], name)

    def block_norm(self, hidden: str, layer: str, name: str | None) -> str:
        """Norm by one of a block's norms, where the block has it."""
        return hidden if name is None else self.norm(hidden, f"{layer}.{name}")

    def norm(
        self, hidden: str, name: str, size: int | None = None, epsilon: float | None = None, kind: str | None = None
    ) -> str:
        """Norm the last dimension, of `size`, or D; epsilon, kind: other than the config's."""
        epsilon, (is_rms, has_weight, has_bias) = epsilon or self.config.norm_eps, _NORMS[kind or self.config.norm]
        if has_weight:
            weight = self.stored(f"{name}.weight")
        else:
            size = size or self.config.hidden_size
            weight = self.graph.weight(f"constant.ones.{size}", np.ones(size, np.float32))
        if is_rms:
            return self.operators.rms_norm(self.graph, hidden, weight, epsilon, name, self.addends.get(hidden, ()))
        inputs = [hidden, weight]
        if has_bias:
            inputs.append(self.stored(f"{name}.bias"))
        attributes = {"epsilon": epsilon, "axis": -1}
        return self.graph.node("LayerNormalization", inputs, f"{name}.output", "", attributes)

    def normed_by_head(self, projected: str, module: str, width: int, head_dim: int) -> str:
        """Norm queries or keys [B, T, width], each head by itself or all together."""
        scope, is_rms = self.config.qk_norm_scope, self.config.norm.startswith("rms")
        kind = None if self.config.qk_norm_weights else "rms_plain"
        if scope == "projection":
            return self.norm(projected, module, width, kind=kind)
        heads = split_heads(self.graph, projected, width // head_dim, head_dim, module)
        if scope == "own_head":
            normed = self.norm(heads, f"{module}.plain", head_dim, kind="rms_plain" if is_rms else "layer_plain")
        else:
            normed = self.norm(heads, module, head_dim, kind=kind)
        joined = self.graph.node("Reshape", [normed, self.graph.constant([0, 0, width])], f"{module}.joined")
        if scope != "own_head":
            return joined
        weight = self.stored(f"{module}.weight")
        return self.graph.node("Mul", [joined, weight], f"{module}.weighted")

    def experts(self, hidden: str, stream: str, name: str) -> str:
        """Add the experts of a block, and the one beside them; `stream` is what `hidden` is the norm of."""
        read, routed_by, has_norms = hidden, hidden, self.config.expert_norms
        if has_norms:
            routed_by, read = (self.norm(stream, f"{name}.{norm}") for norm in EXPERT_NORMS[:2])
        chosen = add_experts(self, read, routed_by, name)
        if not self.config.shared_expert_intermediate_size:
            return chosen
        shared = self.dense(hidden, f"{name}.shared_experts")
        if self.config.shared_expert_gate:
            module = f"{name}.shared_expert_gate"
            weight_D1 = self.graph.weight(f"{module}.weight", self.checkpoint.tensor(f"{module}.weight").T)
            score = self.graph.node("MatMul", [hidden, weight_D1], f"{module}.output")
            share = self.graph.node("Sigmoid", [score], f"{module}.share")
            shared = self.graph.node("Mul", [shared, share], f"{module}.applied")
        if has_norms:
            made = zip((chosen, shared), EXPERT_NORMS[2:], strict=True)
            chosen, shared = (self.norm(part, f"{name}.{norm}") for part, norm in made)
        return self.graph.node("Add", [chosen, shared], f"{name}.all_experts")

    def dense(self, hidden: str, name: str, cutoff: float | None = None) -> str:
        """Add a feed-forward that every token goes through; cutoff: of its gates (ModelConfig.gate_cutoff)."""
        graph = self.graph
        if not self.config.mlp_gated:
            inner = self.activation(self.projections.linear(hidden, f"{name}.up_proj"), name)
            return self.projections.linear(self.sub_norm(inner, f"{name}.ffn_sub_norm"), f"{name}.down_proj")
        outputs = self.projections.fused(hidden, [f"{name}.gate_proj", f"{name}.up_proj"], f"{name}.gate_up_proj")
        if len(outputs) == 1:
            parts = [f"{name}.gate", f"{name}.up"]
            graph.node("Split", outputs, parts, attributes={"axis": -1, "num_outputs": 2})
            outputs = parts
        gate = outputs[0] if cutoff is None else add_thinned(self, outputs[0], cutoff, name)
        gated = graph.node("Mul", [self.activation(gate, name), outputs[1]], f"{name}.gated")
        return self.projections.linear(self.sub_norm(gated, f"{name}.ffn_sub_norm"), f"{name}.down_proj")

    def sub_norm(self, hidden: str, name: str) -> str:
        """Norm what a last projection reads, where the config has such norms."""
        return self.norm(hidden, name) if self.config.sub_norms else hidden

    def activation(self, hidden: str, name: str) -> str:
        """Add the config's activation."""
        if self.config.hidden_act == "silu":
            return self.operators.silu(self.graph, hidden, name)
        if self.config.hidden_act == "xielu":
            return self.xielu(hidden, name)
        operator, attributes = _ACTIVATIONS[self.config.hidden_act]
        activated = self.graph.node(operator, [hidden], f"{name}.activation", attributes=attributes)
        if self.config.hidden_act == "relu2":
            return self.graph.node("Mul", [activated, activated], f"{name}.activation_squared")
        return activated

    def xielu(self, hidden: str, name: str) -> str:
        """Grow by the square above zero, and towards a line below, by two factors of the layer (arXiv:2411.13010).

        What makes the factors of their alphas is of constants, which ONNX Runtime computes when it loads the graph.
        """
        graph, alphas = self.graph, [f"{name}.act_fn.alpha_{side}" for side in "pn"]
        stored = [self.stored(alpha) for alpha in alphas]
        name, slope = f"{name}.xielu", graph.constant(XIELU_BETA, np.float32)
        above, rest = (graph.node("Softplus", [alpha], f"{alpha}.softplus") for alpha in stored)
        factors = [above, graph.node("Add", [rest, slope], f"{name}.below")]
        positive = graph.node("Relu", [hidden], f"{name}.positive")
        negative = graph.node("Sub", [hidden, positive], f"{name}.negative")
        bent = graph.node("Sub", [graph.node("Elu", [negative], f"{name}.elu"), negative], f"{name}.bent")
        square = graph.node("Mul", [positive, positive], f"{name}.square")
        grown = graph.node("Mul", [square, factors[0]], f"{name}.grown")
        scaled = graph.node("Mul", [bent, factors[1]], f"{name}.scaled")
        line = graph.node("Mul", [hidden, slope], f"{name}.line")
        return graph.node("Add", [graph.node("Add", [grown, scaled], f"{name}.curve"), line], f"{name}.output")

"""The decoder as an ONNX graph: the twin of edgelm_training/model.py, in the same order.

Shapes: B batch, T query tokens, C capacity of the cache, D hidden, N query heads, K kv heads, H head dim, R its part
that turns, V vocabulary.

The graph takes `input_ids` [B, T], `attention_mask` [B, M] with a one for each filled or new position (M is any length
that holds them all), and the cache `past_key_values.{i}.key|value` [B, K, C, H]; it gives `logits` [B, T', V],
`present.{i}.key|value`, and `last_hidden_state` [B, T, D], what the head reads, for who asks for it. Past and present
may share memory. With convolutions it takes `past_conv` [B, 1, L - 1, W], what they read of the tokens before the new
ones, and gives `present_conv` [B, 1, T, W], what the next ones will read of these: L tokens that a convolution sees, W
channels of all layers that have one. With linear attention or Mamba 2 it takes and gives the states of those layers
(layers/linear_attention.py). Layers that look at keys and values of an earlier one give those again, as
`shared.{i}.key|value`, which may be the same memory too. With an encoder it also takes `cross_key_values.{i}.key|value`
[B, K, S, H], what the encoder's graph (encoder.py) gives of a source text. The optional scalar `num_logits_to_keep`
says for how many of the last positions logits are wanted; 0, the default, is all of them, as other runtimes expect.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgelm.architecture.layer_features import CROSS_NORMS
from edgelm.architecture.quantization_recipe import Precision
from edgelm.architecture.relative_positions import alibi_slopes, distances_name, relative_buckets
from edgelm.architecture.rope import LARGEST_TABLE, has_long_table, query_factors
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.runtime.decoder_graph import CROSS, SHARED
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.folded import ROTARY_MULTIPLE, FoldedCheckpoint, padded_rotary_dim
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import BATCH, FLOAT, INT32, INT64, MICROSOFT, TO_END
from edgelm_export.layers.altup import add_merged, add_spread
from edgelm_export.layers.convolution import Convolutions
from edgelm_export.layers.latent_attention import add_latent_attention
from edgelm_export.layers.linear_attention import add_linear_attention, add_states
from edgelm_export.layers.mamba import add_mamba
from edgelm_export.layers.mamba2 import add_mamba2
from edgelm_export.layers.stack import Stack
from edgelm_export.layers.standard_attention import split_heads
from edgelm_export.quantize.packed import PackedWeight

_ATTENTION_BIAS, _HEAD_SINK = 10, 11  # the places of these inputs in GroupQueryAttention
_HEAD_MULTIPLE = 8  # of GroupQueryAttention's heads


def build_decoder(checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> onnx.ModelProto:
    """Build the graph of a checkpoint; its weights are read, quantized and written one after the other.

    Raises:
        ExportError: ONNX Runtime's operators cannot compute this config.
    """
    config = checkpoint.config
    for head_dim in sorted({config.head_size(layer) for layer in config.attention_layers}):
        if head_dim % _HEAD_MULTIPLE:
            raise ExportError(
                f"head_dim is {head_dim}; ONNX Runtime's GroupQueryAttention takes heads of a multiple of "
                f"{_HEAD_MULTIPLE}. Export it in operators of the ONNX standard (--operators standard), or "
                "train with such a head_dim."
            )
    return DecoderStack(folded(checkpoint), precision, data).build()


def folded(checkpoint: Checkpoint) -> FoldedCheckpoint:
    """Fold what never changes at run time into the weights of a checkpoint.

    Raises:
        ExportError: it has more positions than can be rotated, or there is no weight that could take a factor.
    """
    for stack in filter(None, (checkpoint.config, checkpoint.config.encoder)):
        _check_rotation(stack)
    return FoldedCheckpoint(checkpoint)


def _check_rotation(config: ModelConfig) -> None:
    widest = max(padded_rotary_dim(config, kind) for kind in ("global", "local"))
    row = 4 * (widest // 2) * (2 if config.short_context is not None else 1)
    if config.position == "rope" and config.max_position_embeddings * row > LARGEST_TABLE:
        raise ExportError(
            f"max_position_embeddings is {config.max_position_embeddings}; the rotations of at most "
            f"{LARGEST_TABLE // row} positions are made when a graph of such heads is loaded. Set it to that or less."
        )


class DecoderStack(Stack):
    """Write the decoder into a graph of its own."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> None:
        super().__init__(checkpoint, checkpoint.config, checkpoint.config.decoder_name, precision, data)

    def build(self) -> onnx.ModelProto:
        """Return the graph."""
        hidden = self.begin()
        for i in range(self.config.num_hidden_layers):
            hidden = self.block(hidden, i)
        self.convolutions.end()
        self.head(self.last_positions(self.last_hidden_state(hidden)))
        return self.graph.model(self.config.model_type)

    def begin(self) -> str:
        """Add what stands before the first block."""
        self.inputs()
        hidden = self.embedding()
        self.features_of_layers(hidden)
        self.rotations()
        self.convolutions = Convolutions(self)
        return add_spread(self, hidden) if self.config.altup_num_inputs > 1 else hidden

    def inputs(self) -> None:
        """Declare inputs; derive from the mask what attention and positions want of it: each row's last position."""
        graph = self.graph
        graph.input("input_ids", INT64, [BATCH, "tokens"])
        mask = graph.input("attention_mask", INT64, [BATCH, "mask_length"])
        counts = graph.node(
            "ReduceSum", [mask, graph.constant([1])], "attention_mask.counts", attributes={"keepdims": 0}
        )
        self.last = graph.node("Sub", [counts, graph.constant(1)], "attention_mask.last")
        self.attention_inputs()

    def attention_inputs(self) -> None:
        """Derive from the mask what GroupQueryAttention wants: each row's last position, and C."""
        graph = self.graph
        self.seqlens_k = graph.node("Cast", [self.last], "seqlens_k", attributes={"to": INT32})
        self.mask_length = self.length_of_mask()
        self.key_count = self.mask_length
        to_int32 = {"to": INT32}
        self.total_sequence_length = graph.node("Cast", [self.mask_length], "total_sequence_length", "", to_int32)

    def length_of_mask(self) -> str:
        """Measure the mask, [1]."""
        bounds = {"start": 1, "end": 2}
        return self.graph.node("Shape", ["attention_mask"], "attention_mask.length", attributes=bounds)

    def positions(self) -> str:
        """Count the positions [B, T] of the new tokens: `last - T + 1 .. last`."""
        graph, name = self.graph, "positions"
        if graph.has_node(name):
            return name
        tokens = graph.node("Shape", ["input_ids"], "input_ids.tokens", attributes={"start": 1, "end": 2})
        scalar = graph.node("Squeeze", [tokens], "input_ids.tokens_scalar")
        first = graph.node("Sub", [graph.constant(1), scalar], "positions.first")
        backwards = graph.node(
            "Range", [first, graph.constant(1), graph.constant(1)], "positions.offsets"
        )  # 1 - T .. 0
        last_B1 = graph.node("Unsqueeze", [self.last, graph.constant([1])], "positions.last")
        return graph.node("Add", [last_B1, backwards], name)

    def query_places(self) -> str:
        """Return the places [B, T] of the new tokens among the keys: their positions."""
        return self.positions()

    def rotations(self) -> None:
        """Add the tables of each kind of layer, and for LongRoPE the rows to take.

        LongRoPE turns all of a text by whether it is longer than the original context. The length of the attention
        mask decides, since it is known from a text's first chunk on: the cache was made for so many tokens.
        """
        graph, config = self.graph, self.config
        self.rope: dict[str | None, list[str]] = {None: []}
        for kind in sorted({kind for i in range(config.num_hidden_layers) if (kind := config.rope_kind(i))}):
            self.rope[kind] = self.cos_and_sin(kind)
            if has_long_table(config, kind):
                short_context = graph.constant([config.short_context or 0])
                is_long = graph.node("Greater", [self.mask_length, short_context], "model.rope.is_long")
                bounds = [graph.constant([config.max_position_embeddings]), graph.constant([0])]
                first = graph.node("Where", [is_long, *bounds], "model.rope.first_row")
                self.rope[kind].append(graph.node("Add", [self.positions(), first], "model.rope.rows"))
        if config.llama_4_scaling_beta is not None:
            self.query_factor = self.growth_of_queries()

    def growth_of_queries(self) -> str:
        """Look up what queries are multiplied by, [B, T, 1]: computed, it has other bits in a batch than alone."""
        graph, config, name = self.graph, self.config, "model.query_factor"
        original = config.rope_scaling.original_max_position_embeddings
        factors = query_factors(config, np.arange(0, config.max_position_embeddings, original))
        contexts = graph.node("Div", [self.positions(), graph.constant(original)], f"{name}.contexts")
        return graph.node("Gather", [graph.weight(f"{name}s", factors[:, None]), contexts], name)

    def added_scores(self, i: int) -> str:
        """Return what is added to the scores of the heads of layer i, [B, N, T, C]; nothing where positions turn."""
        if self.config.position == "alibi":
            return self.falling_scores()
        if self.config.position != "relative":
            return ""
        source = distances_name(self.config, self.name, i)
        name = source.removesuffix(".weight")
        if self.graph.has_node(f"{name}.output"):
            return f"{name}.output"
        return self.distance_scores(source, name)

    def distance_scores(self, source: str, name: str) -> str:
        """Gather what each distance of a query and a key adds to the scores of each head [B, N, T, C].

        Distances beyond the last bucket's first are one, so the table has no end; later keys are masked anyway.
        """
        graph, config = self.graph, self.config
        largest = config.relative_attention_max_distance
        buckets = relative_buckets(config, -np.arange(largest + 1), both_ways=False)
        table = graph.weight(f"{name}.by_distance", self.checkpoint.tensor(source)[buckets])
        scores_BTCN = graph.node("Gather", [table, self.clipped_distances(largest)], f"{name}.scores")
        return graph.node("Transpose", [scores_BTCN], f"{name}.output", attributes={"perm": [0, 3, 1, 2]})

    def falling_scores(self) -> str:
        """Take off the scores of each head what it takes off for each token between a query and a key [B, N, T, C]."""
        graph, name = self.graph, f"{self.name}.alibi"
        if graph.has_node(name):
            return name
        distances = self.clipped_distances(self.config.max_position_embeddings)
        numbers = graph.node("Cast", [distances], f"{name}.distances", attributes={"to": FLOAT})
        numbers_B1TC = graph.node("Unsqueeze", [numbers, graph.constant([1])], f"{name}.distances_of_heads")
        slopes = graph.weight(f"{name}.slopes", -alibi_slopes(self.config)[:, None, None])
        return graph.node("Mul", [numbers_B1TC, slopes], name)

    def clipped_distances(self, largest: int) -> str:
        """Count how far each query [B, T, C] stands behind each key, from 0 to `largest`."""
        graph, name = self.graph, f"{self.name}.distances"
        if graph.has_node(f"{name}.clipped"):
            return f"{name}.clipped"
        capacity = graph.node("Squeeze", [self.key_count], f"{name}.capacity")
        keys = graph.node("Range", [graph.constant(0), capacity, graph.constant(1)], f"{name}.keys")
        queries = graph.node("Unsqueeze", [self.query_places(), graph.constant([2])], f"{name}.queries")
        distances = graph.node("Sub", [queries, keys], name)
        return graph.node("Clip", [distances, graph.constant(0), graph.constant(largest)], f"{name}.clipped")

    def crossed(self, hidden: str, layer: str, i: int) -> str:
        """Look at the source: at keys and values that the encoder's graph gives once for all steps."""
        graph, config = self.graph, self.config
        if config.encoder is None:
            return hidden
        before, after = CROSS_NORMS[config.norm_placement]
        name = f"{layer}.encoder_attn"
        query = self.projections.linear(self.block_norm(hidden, layer, before), f"{name}.q_proj")
        shape: list[int | str] = [BATCH, config.num_key_value_heads, "source_tokens", config.head_dim]
        source = [graph.input(f"{CROSS}.{i}.{part}", FLOAT, shape) for part in ("key", "value")]
        output = self.operators.attention(graph, config, [query, *source], name, by_head=True)
        return self.added(hidden, self.projections.linear(output, f"{name}.o_proj"), layer, after, "cross_residual")

    def attention(self, hidden: str, i: int) -> str:
        """Add the attention of a block, or what is in its place or beside it, and the projection of what it gives."""
        if self.config.is_conv(i):
            return self.convolutions.add(hidden, i)
        if self.config.kind(i) == "linear_attention":
            return add_linear_attention(self, hidden, f"{self.name}.layers.{i}.linear_attn", *add_states(self, i))
        if self.config.kind(i) == "mamba":
            return add_mamba(self, hidden, f"{self.name}.layers.{i}.mamba", *add_states(self, i))
        if not self.config.has_mamba2(i):
            return self.gathered(hidden, i)
        gathered = self.gathered(hidden, i) if self.config.attends(i) else ""
        read = add_mamba2(self, hidden, f"{self.name}.layers.{i}.mamba", *add_states(self, i))
        return self.graph.node("Add", [gathered, read], f"{self.name}.layers.{i}.mixed") if gathered else read

    def gathered(self, hidden: str, i: int) -> str:
        """Add what the queries of a block gather, and its projection."""
        name, attended = f"{self.name}.layers.{i}.self_attn", self.attended(hidden, i)
        if self.config.attention_output_gate:
            attended = self.gated(attended, hidden, name, i)
        return self.projections.linear(self.sub_norm(attended, f"{name}.attn_sub_norm"), f"{name}.o_proj")

    def attended(self, hidden: str, i: int) -> str:
        """Project queries, keys and values, norm them, and let the queries look at the keys."""
        name = f"{self.name}.layers.{i}.self_attn"
        if self.config.kv_lora_rank is not None:
            return add_latent_attention(self, hidden, i, name)
        if self.config.keys_of(i) == i:
            qkv = self.projections.fused(hidden, [f"{name}.{part}_proj" for part in "qkv"], f"{name}.qkv_proj")
        else:
            qkv = [self.projections.linear(hidden, f"{name}.q_proj"), *self.no_keys_and_values(i)]
        if self.config.qk_norm or self.config.v_norm:
            qkv = self.normed_heads(qkv, i, name)
        if self.turns_apart(i) and not self.turns_before_norms:
            qkv = self.turned_parts(self.apart(qkv, i, name), i, name)
        if self.config.llama_4_scaling_beta is not None and self.config.rope_kind(i) is not None:
            query, *keys_and_values = self.apart(qkv, i, name)
            qkv = [self.graph.node("Mul", [query, self.query_factor], f"{name}.grown_query"), *keys_and_values]
        return self.grouped_query_attention(qkv, i, name)

    def grouped_query_attention(self, qkv: list[str], i: int, name: str) -> str:
        """Grouped-query attention; rotation, cache and causal mask are inside the operator."""
        graph, shape, source = self.graph, self.cache_shape(i, "capacity"), self.config.keys_of(i)
        kept = self.config.kept_parts if source == i else ()
        if kept:
            past = [graph.input(f"past_key_values.{i}.{part}", FLOAT, shape) for part in kept]
        else:
            past = [f"present.{source}.{part}" for part in ("key", "value")]
        past = [past[0], past[-1]]  # keys and values may be one
        # Where they are the same memory as the past, nothing is copied.
        kinds = {part: "present" if part in kept else SHARED for part in ("key", "value")}
        present = [graph.output(f"{kind}.{i}.{part}", FLOAT, shape) for part, kind in kinds.items()]
        if len(qkv) == 1:
            qkv = [*qkv, "", ""]  # the operator splits a packed query, key and value itself
        return self.look(qkv, past, present, self.rotation(i), i, name)

    def rotation(self, i: int) -> list[str]:
        """Return the tables by which attention turns queries and keys of layer i; none where they are turned before."""
        is_before = self.turns_before_norms or self.turns_apart(i) or self.config.kv_lora_rank is not None
        return [] if is_before else self.rope[self.config.rope_kind(i)]

    def turns_apart(self, i: int) -> bool:
        """Tell whether the heads of layer i turn, and are of a size that attention turns none of."""
        return self.config.rope_kind(i) is not None and self.config.head_size(i) % ROTARY_MULTIPLE != 0

    @property
    def turns_before_norms(self) -> bool:
        """Whether queries and keys are turned before they are normed."""
        return self.config.qk_norm and self.config.qk_norm_scope == "turned_head"

    def turned_parts(self, qkv: list[str], i: int, name: str) -> list[str]:
        """Turn queries, and keys that are the layer's own, before attention."""
        query, key, value = qkv
        query = self.turned_heads(query, self.config.query_heads(i), i, f"{name}.turned_query")
        if self.config.keys_of(i) == i:
            key = self.turned_heads(key, self.config.kv_heads(i), i, f"{name}.turned_key")
        return [query, key, value]

    def turned_heads(self, projected: str, heads: int, i: int, name: str) -> str:
        """Turn heads [B, T, heads * H] of layer i by their positions.

        Source: RotaryEmbedding in onnxruntime's ContribOperators.md.
        """
        kind = self.config.rope_kind(i)
        if kind is None:
            return projected
        cos, sin, *rows = self.rope[kind]
        rotary_dim = padded_rotary_dim(self.config, kind)
        attributes = {"num_heads": heads}
        if rotary_dim < self.config.head_size(i):
            attributes["rotary_embedding_dim"] = rotary_dim
        inputs = [projected, rows[0] if rows else self.turning_positions(), cos, sin]
        return self.graph.node("RotaryEmbedding", inputs, name, MICROSOFT, attributes)

    def turning_positions(self) -> str:
        """Return the positions [B, T] of the new tokens, or [1] of the first."""
        return self.positions()

    def no_keys_and_values(self, i: int) -> list[str]:
        """Return keys and values of no tokens [B, 0, K * H], for a layer that looks at those of another."""
        graph, width = self.graph, self.config.kv_heads(i) * self.config.head_size(i)
        name = f"no_keys.{width}"
        if not graph.has_node(name):
            shape = graph.node("Shape", ["input_ids"], f"{name}.rows", attributes={"start": 0, "end": 1})
            sizes = graph.node("Concat", [shape, graph.constant([0, width])], f"{name}.shape", attributes={"axis": 0})
            graph.node("ConstantOfShape", [sizes], name)
        return [name, name]

    def cache_shape(self, i: int, tokens: str) -> list[int | str]:
        """Return the shape of the keys or values of so many tokens of a layer."""
        return [BATCH, self.config.kv_heads(i), tokens, self.config.head_size(i)]

    def look(self, qkv: list[str], past: list[str], present: list[str], rotation: list[str], i: int, name: str) -> str:
        """Let the queries of layer i look at the keys; they and the new keys are turned first by what `rotation` names.

        Source: GroupQueryAttention in onnxruntime's ContribOperators.md.
        """
        graph, config = self.graph, self.config
        inputs = [*qkv, *past, self.seqlens_k, self.total_sequence_length, *rotation]
        if added := self.added_scores(i):
            inputs += [""] * (_ATTENTION_BIAS - len(inputs)) + [added]
        if config.attention_sinks:
            inputs += [""] * (_HEAD_SINK - len(inputs))
            inputs.append(self.stored(f"{name}.sinks"))
        attributes = {
            "num_heads": config.query_heads(i),
            "kv_num_heads": config.kv_heads(i),
            "scale": config.attention_scale,
            "do_rotary": int(bool(rotation)),
            "local_window_size": config.window(i),
            "softcap": config.attn_logit_softcapping,
        }
        return graph.node("GroupQueryAttention", inputs, [f"{name}.output", *present], MICROSOFT, attributes)

    def normed_heads(self, qkv: list[str], i: int, name: str) -> list[str]:
        """Norm queries and keys, by head or all heads together, and values; packed or not before, they are apart after.

        Of a layer that looks at the keys and values of another, the queries alone.
        """
        config, H = self.config, self.config.head_size(i)
        parts = self.apart(qkv, i, name)
        query, key, value = self.turned_parts(parts, i, name) if self.turns_before_norms else parts
        own, N, K = config.keys_of(i) == i, config.query_heads(i), config.kv_heads(i)
        if config.qk_norm:
            query = self.normed_by_head(query, f"{name}.q_norm", N * H, H)
        if config.qk_norm and own:
            key = self.normed_by_head(key, f"{name}.k_norm", K * H, H)
        if config.v_norm and own:
            heads = split_heads(self.graph, value, K, H, f"{name}.v_norm")
            normed = self.norm(heads, f"{name}.v_norm", H, kind="rms_plain")
            joined = self.graph.constant([0, 0, K * H])
            value = self.graph.node("Reshape", [normed, joined], f"{name}.v_norm.joined")
        return [query, key, value]

    def apart(self, qkv: list[str], i: int, name: str) -> list[str]:
        """Split a packed query, key and value; what is not packed stays."""
        if len(qkv) > 1:
            return qkv
        H, parts = self.config.head_size(i), [f"{name}.{part}" for part in "qkv"]
        NH, KH = self.config.query_heads(i) * H, self.config.kv_heads(i) * H
        self.graph.node("Split", [qkv[0], self.graph.constant([NH, KH, KH])], parts, attributes={"axis": -1})
        return parts

    def last_hidden_state(self, hidden: str) -> str:
        """Norm all positions, also those that no logits are wanted of: embeddings are made of them."""
        graph = self.graph
        hidden = add_merged(self, hidden) if self.config.altup_num_inputs > 1 else hidden
        normed = self.norm(hidden, f"{self.name}.norm") if self.config.final_norm else hidden
        graph.output("last_hidden_state", FLOAT, [BATCH, "tokens", self.config.hidden_size])
        return graph.node("Identity", [normed], "last_hidden_state")

    def last_positions(self, hidden: str) -> str:
        """Keep the positions whose logits are wanted: the head is a tenth of a decode step, and most of a prefill's."""
        graph = self.graph
        keep = graph.input("num_logits_to_keep", INT64, [])
        graph.weight(keep, np.array(0, np.int64))
        start = graph.node(
            "Neg", [graph.node("Unsqueeze", [keep, graph.constant([0])], f"{keep}.list")], f"{keep}.start"
        )
        inputs = [hidden, start, graph.constant([TO_END]), graph.constant([1])]
        return graph.node("Slice", inputs, "model.last_positions")

    def head(self, hidden: str) -> None:
        """Add what the head reads, its product, and what follows that."""
        graph, config = self.graph, self.config
        if config.head_transform:
            dense = f"{self.name}.head_dense"
            bent = self.activation(self.projections.linear(hidden, dense), dense)
            hidden = self.norm(bent, f"{self.name}.head_norm")
        cap = config.final_logit_softcapping
        steps: list[tuple[str, list[str]]] = []  # what the product goes through to become the logits
        if config.lm_head_bias:
            steps.append(("Add", [self.stored("lm_head.bias")]))
        factor = 1 / (config.logits_scaling * (cap or 1.0))
        if factor != 1.0:
            steps.append(("Mul", [graph.constant(factor, np.float32)]))
        if cap is not None:
            steps += [("Tanh", []), ("Mul", [graph.constant(cap, np.float32)])]
        names = [*(f"lm_head.step{number}" for number in range(len(steps))), "logits"]
        self.head_product(hidden, names[0])
        for before, after, (operator, operands) in zip(names, names[1:], steps, strict=False):
            graph.node(operator, [before, *operands], after)
        graph.output("logits", FLOAT, [BATCH, "kept", config.vocab_size])

    def head_product(self, hidden: str, output: str) -> None:
        """Add the product by the head, or by the embedding where they are one."""
        graph, config = self.graph, self.config
        hidden = self.divided(hidden, "lm_head.input")
        if not config.tie_word_embeddings:
            self.projections.head(hidden, output)
        elif isinstance(self.tied_weight, PackedWeight):
            operators = self.projections.operators
            operators.product(graph, hidden, operators.tied(graph, self.tied_parts), self.tied_weight, output)
        else:
            transposed_DV = graph.node("Transpose", self.tied_parts, "lm_head.weight", attributes={"perm": [1, 0]})
            graph.node("MatMul", [hidden, self.projections.widened(transposed_DV, self.tied_weight.dtype)], output)

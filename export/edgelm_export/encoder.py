"""The encoder as an ONNX graph: what the decoder's cross-attention needs of a source text, computed once.

The graph takes `input_ids` [B, S], and gives `cross_key_values.{i}.key|value` [B, K, S, H] for each layer of the
decoder, whose projections of keys and values stand in this graph. All rows of a batch are of one length.

Shapes: B batch, S source tokens, D hidden, N query heads, K kv heads, H head dim, R its part that turns.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgelm.architecture.quantization_recipe import Precision
from edgelm.architecture.relative_positions import distances_name, relative_buckets
from edgelm.config import ModelConfig
from edgelm.runtime.decoder_graph import CROSS
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.folded import FoldedCheckpoint
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import BATCH, FLOAT, INT64
from edgelm_export.layers.stack import Stack
from edgelm_export.layers.standard_attention import UNSEEN, rotate, split_heads


def build_encoder(checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> onnx.ModelProto:
    """Build the graph of a checkpoint's encoder, beside `build_decoder`'s and with the same external data."""
    folded = FoldedCheckpoint(checkpoint)
    assert folded.config.encoder is not None  # the caller has looked
    return _Encoder(folded, folded.config.encoder, "model.encoder", precision, data).build(folded.config)


class _Encoder(Stack):
    def build(self, decoder: ModelConfig) -> onnx.ModelProto:
        self.graph.input("input_ids", INT64, [BATCH, "source_tokens"])
        hidden = self.embedding()
        self.rotations()
        for i in range(self.config.num_hidden_layers):
            hidden = self.block(hidden, i)
        if self.config.final_norm:
            hidden = self.norm(hidden, f"{self.name}.norm")
        for i in range(decoder.num_hidden_layers):
            self.cross_keys_and_values(hidden, decoder, i)
        return self.graph.model(f"{decoder.model_type}-encoder")

    def positions(self) -> str:
        """Count the positions [S], from 0."""
        graph = self.graph
        if graph.has_node("positions"):
            return "positions"
        tokens = graph.node("Shape", ["input_ids"], "input_ids.tokens", attributes={"start": 1, "end": 2})
        scalar = graph.node("Squeeze", [tokens], "input_ids.tokens_scalar")
        return graph.node("Range", [graph.constant(0), scalar, graph.constant(1)], "positions")

    def rotations(self) -> None:
        """Gather the cosines and sines of the tokens, each [S, 1, R / 2], for each kind of layer that turns heads."""
        graph, kinds = self.graph, map(self.config.rope_kind, range(self.config.num_hidden_layers))
        self.rope: dict[str, list[str]] = {}
        for kind in dict.fromkeys(filter(None, kinds)):
            rows = [graph.node("Gather", [t, self.positions()], f"{t}.of_tokens") for t in self.cos_and_sin(kind)]
            self.rope[kind] = [graph.node("Unsqueeze", [row, graph.constant([1])], f"{row}.of_heads") for row in rows]

    def turned(self, projected: str, heads: int, i: int, name: str) -> str:
        """Turn heads [B, S, heads * H] of layer i by their positions, where they turn."""
        graph, H, kind = self.graph, self.config.head_dim, self.config.rope_kind(i)
        if kind is None:
            return projected
        cos, sin = self.rope[kind]
        turned = rotate(graph, split_heads(graph, projected, heads, H, name), cos, sin, [H // 2, H // 2], name)
        return graph.node("Reshape", [turned, graph.constant([0, 0, heads * H])], f"{name}.joined")

    def added_scores(self, i: int) -> str:
        """Return what is added to the scores of layer i, [1, 1 or N, S, S]: nothing, where a query sees all alike."""
        scores, unseen = self.distance_scores(i), self.unseen(self.config.window(i))
        if not scores or not unseen:
            return scores or unseen
        return self.graph.node("Add", [scores, unseen], f"{self.name}.layers.{i}.self_attn.added_scores")

    def unseen(self, window: int | None) -> str:
        """Return what hides the keys that are as far as a window, either way; nothing without a window."""
        if window is None:
            return ""
        graph, name = self.graph, f"{self.name}.unseen.{window}"
        if graph.has_node(name):
            return name
        sizes = graph.node("Abs", [self.distances()], f"{name}.distances")
        near = graph.node("Less", [sizes, graph.constant(window)], f"{name}.near")
        added = [graph.constant(value, np.float32) for value in (0.0, UNSEEN)]
        hidden = graph.node("Where", [near, *added], f"{name}.of_tokens")
        return graph.node("Unsqueeze", [hidden, graph.constant([0, 1])], name)

    def distance_scores(self, i: int) -> str:
        """Gather what each distance of a query and a key, either way, adds to the scores of each head [1, N, S, S] of
        layer i; nothing where positions are in the embedding.
        """
        graph, config = self.graph, self.config
        if config.position != "relative":
            return ""
        source = distances_name(config, self.name, i)
        name = source.removesuffix(".weight")
        if graph.has_node(f"{name}.output"):
            return f"{name}.output"
        largest = config.relative_attention_max_distance
        buckets = relative_buckets(config, np.arange(-largest, largest + 1), both_ways=True)
        by_head = np.ascontiguousarray(self.checkpoint.tensor(source)[buckets].T[None])
        table = graph.weight(f"{name}.by_distance", by_head)
        return graph.node("Gather", [table, self.clipped_distances(largest)], f"{name}.output", attributes={"axis": 2})

    def clipped_distances(self, largest: int) -> str:
        """Return the rows of a table that begins at -largest: how far each key stands behind each query [S, S]."""
        graph, name = self.graph, f"{self.name}.distances"
        if graph.has_node(f"{name}.rows"):
            return f"{name}.rows"
        bounds = [graph.constant(-largest), graph.constant(largest)]
        clipped = graph.node("Clip", [self.distances(), *bounds], f"{name}.clipped")
        return graph.node("Add", [clipped, graph.constant(largest)], f"{name}.rows")

    def distances(self) -> str:
        """Count how far each key stands behind each query, [S, S]."""
        graph, name, keys = self.graph, f"{self.name}.distances", self.positions()
        if graph.has_node(name):
            return name
        queries = graph.node("Unsqueeze", [keys, graph.constant([1])], f"{name}.queries")
        return graph.node("Sub", [keys, queries], name)

    def attention(self, hidden: str, i: int) -> str:
        name, config = f"{self.name}.layers.{i}.self_attn", self.config
        N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        qkv = self.projections.fused(hidden, [f"{name}.{part}_proj" for part in "qkv"], f"{name}.qkv_proj")
        query, key, value = self.apart(qkv, [N * H, K * H, K * H])
        qkv = [self.turned(query, N, i, f"{name}.turned_query"), self.turned(key, K, i, f"{name}.turned_key"), value]
        output = self.operators.attention(self.graph, config, qkv, name, self.added_scores(i))
        return self.projections.linear(output, f"{name}.o_proj")

    def apart(self, outputs: list[str], widths: list[int]) -> list[str]:
        """Split what one product gave into parts of these widths."""
        if len(outputs) == len(widths):
            return outputs
        names = [f"{outputs[0]}.{part}" for part in range(len(widths))]
        self.graph.node("Split", [*outputs, self.graph.constant(widths)], names, attributes={"axis": -1})
        return names

    def cross_keys_and_values(self, hidden: str, decoder: ModelConfig, i: int) -> None:
        """Project the source for one layer of the decoder."""
        graph, name = self.graph, f"model.decoder.layers.{i}.encoder_attn"
        modules = [f"{name}.{part}_proj" for part in "kv"]
        K, H = decoder.num_key_value_heads, decoder.head_dim
        projected = self.apart(self.projections.fused(hidden, modules, f"{name}.kv_proj"), [K * H, K * H])
        for part, output in zip(("key", "value"), projected, strict=True):
            heads_BSNH = graph.node("Reshape", [output, graph.constant([0, 0, K, H])], f"{name}.{part}.heads")
            given = graph.output(f"{CROSS}.{i}.{part}", FLOAT, [BATCH, K, "source_tokens", H])
            graph.node("Transpose", [heads_BSNH], given, attributes={"perm": [0, 2, 1, 3]})

"""The encoder as an ONNX graph: what the decoder's cross-attention needs of a source text, computed once.

The graph takes `input_ids` [B, S], and gives `cross_key_values.{i}.key|value` [B, N, S, H] for each layer of the
decoder, whose projections of keys and values stand in this graph. All rows of a batch are of one length.

Shapes: B batch, S source tokens, D hidden, N heads, H head dim.
"""

from __future__ import annotations

import numpy as np
import onnx

from edgelm.architecture.relative_positions import distances_name, relative_buckets
from edgelm.config import ModelConfig
from edgelm.runtime.decoder_graph import CROSS
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.decoder import FLOAT, INT64
from edgelm_export.external_data import ExternalData
from edgelm_export.folded import FoldedCheckpoint
from edgelm_export.graph import BATCH
from edgelm_export.quantize import Precision
from edgelm_export.stack import Stack


def build_encoder(checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> onnx.ModelProto:
    """Build the graph of a checkpoint's encoder, beside `build_decoder`'s and with the same external data."""
    folded = FoldedCheckpoint(checkpoint)
    assert folded.config.encoder is not None  # the caller has looked
    return _Encoder(folded, folded.config.encoder, "model.encoder", precision, data).build(folded.config)


class _Encoder(Stack):
    def build(self, decoder: ModelConfig) -> onnx.ModelProto:
        self.graph.input("input_ids", INT64, [BATCH, "source_tokens"])
        hidden = self.embedding()
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
        tokens = graph.node("Shape", ["input_ids"], "input_ids.tokens", attributes={"start": 1, "end": 2})
        scalar = graph.node("Squeeze", [tokens], "input_ids.tokens_scalar")
        return graph.node("Range", [graph.constant(0), scalar, graph.constant(1)], "positions")

    def added_scores(self, i: int) -> str:
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
        keys = self.positions()
        queries = graph.node("Unsqueeze", [keys, graph.constant([1])], f"{name}.queries")
        distances = graph.node("Sub", [keys, queries], name)
        clipped = graph.node("Clip", [distances, graph.constant(-largest), graph.constant(largest)], f"{name}.clipped")
        return graph.node("Add", [clipped, graph.constant(largest)], f"{name}.rows")

    def attention(self, hidden: str, i: int) -> str:
        name = f"{self.name}.layers.{i}.self_attn"
        qkv = self.apart(self.projections.fused(hidden, [f"{name}.{part}_proj" for part in "qkv"], f"{name}.qkv_proj"))
        output = self.operators.attention(self.graph, self.config, qkv, name, self.added_scores(i))
        return self.projections.linear(output, f"{name}.o_proj")

    def apart(self, outputs: list[str], parts: int = 3) -> list[str]:
        """Split what one product gave into parts of one width."""
        if len(outputs) == parts:
            return outputs
        names = [f"{outputs[0]}.{part}" for part in range(parts)]
        self.graph.node("Split", outputs, names, attributes={"axis": -1, "num_outputs": parts})
        return names

    def cross_keys_and_values(self, hidden: str, decoder: ModelConfig, i: int) -> None:
        """Project the source for one layer of the decoder."""
        graph, name = self.graph, f"model.decoder.layers.{i}.encoder_attn"
        modules = [f"{name}.{part}_proj" for part in "kv"]
        projected = self.apart(self.projections.fused(hidden, modules, f"{name}.kv_proj"), 2)
        N, H = decoder.num_attention_heads, decoder.head_dim
        for part, output in zip(("key", "value"), projected, strict=True):
            heads_BSNH = graph.node("Reshape", [output, graph.constant([0, 0, N, H])], f"{name}.{part}.heads")
            given = graph.output(f"{CROSS}.{i}.{part}", FLOAT, [BATCH, N, "source_tokens", H])
            graph.node("Transpose", [heads_BSNH], given, attributes={"perm": [0, 2, 1, 3]})

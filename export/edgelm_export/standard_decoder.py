"""The decoder as a graph of the ONNX standard's own operators: for providers and runtimes that know no others.

It takes and gives what decoder.py's does, but that its cache is passed along: `past_key_values.{i}.key|value`
[B, K, P, H] are those of exactly P tokens, and `present.{i}.key|value` [B, K, P + T, H] are new. Rows of different
lengths stand in a batch with zeros in the mask where their padding is, on the left.

Shapes: B batch, T query tokens, P past tokens, S = P + T key tokens, N query heads, K kv heads, H head dim, R its part
that turns.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import onnx

from edgelm.architecture.quantization_recipe import Precision
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.folded import padded_rotary_dim
from edgelm_export.decoder import DecoderStack, folded
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import BOOL, FLOAT
from edgelm_export.layers.standard_attention import UNSEEN, Attention, heads_first, rotate, split_heads


def build_standard_decoder(checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> onnx.ModelProto:
    """Build the graph of a checkpoint, as `build_decoder` does.

    Raises:
        ExportError: the standard has no operator for it.
    """
    if checkpoint.config.state_layers:
        raise ExportError(
            f"A {checkpoint.config.model_type} model has {checkpoint.config.state_kinds}, for which the ONNX "
            "standard has no operator. Export it without --operators standard."
        )
    return _StandardDecoderStack(folded(checkpoint), precision, data).build()


class _StandardDecoderStack(DecoderStack):
    """Write the decoder into a graph of its own, in operators of the ONNX standard."""

    def attention_inputs(self) -> None:
        """Derive from the mask which keys each query may see, for each window that a layer has."""
        graph = self.graph
        tokens = graph.node("Shape", ["input_ids"], "new_tokens", attributes={"start": 1, "end": 2})
        first_key = f"past_key_values.{self.config.cached_layers[0]}.key"
        past = graph.node("Shape", [first_key], "past_tokens", attributes={"start": 2, "end": 3})
        self.key_count, self.mask_length = graph.node("Add", [past, tokens], "key_tokens"), self.length_of_mask()
        first, end = (graph.node("Squeeze", [value], f"{value}.scalar") for value in (past, self.key_count))
        places = graph.node("Range", [graph.constant(0), end, graph.constant(1)], "keys.places")
        new_places = graph.node("Range", [first, end, graph.constant(1)], "queries.places")
        queries_T1 = graph.node("Unsqueeze", [new_places, graph.constant([1])], "queries.rows")
        self._query_places = graph.node("Unsqueeze", [new_places, graph.constant([0])], "queries.places_of_rows")
        distances_TS = graph.node("Sub", [queries_T1, places], "distances")
        bounds = [graph.constant([0]), self.key_count, graph.constant([1])]
        mask_BS = graph.node("Slice", ["attention_mask", *bounds], "attention_mask.of_keys")
        filled = graph.node("Cast", [mask_BS], "keys.filled", attributes={"to": BOOL})
        filled_B11S = graph.node("Unsqueeze", [filled, graph.constant([1, 2])], "keys.filled_of_rows")
        earlier_TS = graph.node("GreaterOrEqual", [distances_TS, graph.constant(0)], "keys.earlier")
        self.masks: dict[int | None, str] = {}
        for window in dict.fromkeys(self.config.window(i) for i in self.config.attention_layers):
            name, seen = f"scores.mask.{window}", earlier_TS
            if window is not None:
                near = graph.node("Less", [distances_TS, graph.constant(window)], f"{name}.near")
                seen = graph.node("And", [earlier_TS, near], f"{name}.near_and_earlier")
            seen = graph.node("And", [filled_B11S, seen], f"{name}.seen")
            added = [graph.constant(value, np.float32) for value in (0.0, UNSEEN)]
            self.masks[window] = graph.node("Where", [seen, *added], name)

    @cached_property
    def _positions(self) -> str:
        # Padding on the left has no position: any will do.
        return self.graph.node("Max", [super().positions(), self.graph.constant(0)], "positions.of_tokens")

    def positions(self) -> str:
        """Count the positions [B, T] of the new tokens, without those of padding."""
        return self._positions

    def query_places(self) -> str:
        """Return the places of the queries among the keys, [1, T]: those of the cache, padding included."""
        return self._query_places

    def rotations(self) -> None:
        """Gather cosines and sines of the new tokens [B, T, 1, R / 2], once for all layers of a kind."""
        super().rotations()
        graph = self.graph
        for kind, tables in self.rope.items():
            if kind is not None:
                rows = tables[2] if len(tables) > 2 else self.positions()
                gathered = [graph.node("Gather", [table, rows], f"{table}.of_tokens") for table in tables[:2]]
                self.rope[kind] = [
                    graph.node("Unsqueeze", [values, graph.constant([2])], f"{values}.of_heads") for values in gathered
                ]

    def grouped_query_attention(self, qkv: list[str], i: int, name: str) -> str:
        """Grouped-query attention: queries and keys turned together, keys and values put behind those of the past."""
        graph, config, source = self.graph, self.config, self.config.keys_of(i)
        K, H = config.kv_heads(i), config.head_size(i)
        present = [f"present.{source}.{part}" for part in config.kept_parts]
        if source == i:
            queries, *new = self.turned(qkv, i, name)
            for given, part, heads_BTKH in zip(present, config.kept_parts, new, strict=False):
                past = graph.input(f"past_key_values.{i}.{part}", FLOAT, self.cache_shape(i, "past_tokens"))
                graph.output(given, FLOAT, self.cache_shape(i, "all_tokens"))
                new_BKTH = heads_first(graph, heads_BTKH, f"{name}.{part}")
                graph.node("Concat", [past, new_BKTH], given, attributes={"axis": 2})
        else:
            split = split_heads(graph, qkv[0], config.query_heads(i), H, f"{name}.q")
            queries = self._rotated(split, i, f"{name}.query") if self.rotation(i) else split
        attention = Attention(
            name=f"{name}.attention",
            heads=config.query_heads(i),
            kv_heads=K,
            head_dim=H,
            scale=config.attention_scale,
            soft_cap=config.attn_logit_softcapping,
            addends=[*([added] if (added := self.added_scores(i)) else []), self.masks[config.window(i)]],
            sinks=self.sinks(name) if config.attention_sinks else "",
        )
        # Keys and values may be one.
        return attention.add(graph, heads_first(graph, queries, f"{name}.query"), present[0], present[-1])

    def turned(self, qkv: list[str], i: int, name: str) -> tuple[str, str, str]:
        """Return queries, keys and values by head, [B, T, N or K, H]; the first two turned where there is rope."""
        graph, config = self.graph, self.config
        N, K, H = config.query_heads(i), config.kv_heads(i), config.head_size(i)
        along_heads = {"axis": 2}
        parts = [f"{name}.{part}.by_head" for part in ("query_and_key", "value")]
        if len(qkv) == 1:
            packed = split_heads(graph, qkv[0], N + 2 * K, H, f"{name}.qkv")
            graph.node("Split", [packed, graph.constant([N + K, K])], parts, attributes=along_heads)
        else:
            counts = zip(qkv, (N, K, K), "qkv", strict=True)
            q, k, parts[1] = (split_heads(graph, x, heads, H, f"{name}.{part}") for x, heads, part in counts)
            graph.node("Concat", [q, k], parts[0], attributes=along_heads)
        if self.rotation(i):
            parts[0] = self._rotated(parts[0], i, f"{name}.query_and_key")
        both = [f"{name}.{part}.turned" for part in ("query", "key")]
        graph.node("Split", [parts[0], graph.constant([N, K])], both, attributes=along_heads)
        return both[0], both[1], parts[1]

    def turned_heads(self, projected: str, heads: int, i: int, name: str) -> str:
        """Turn heads [B, T, heads * H] of layer i by their positions."""
        if self.config.rope_kind(i) is None:
            return projected
        H = self.config.head_size(i)
        turned = self._rotated(split_heads(self.graph, projected, heads, H, name), i, name)
        return self.graph.node("Reshape", [turned, self.graph.constant([0, 0, heads * H])], name)

    def _rotated(self, heads_BTNH: str, i: int, name: str) -> str:
        kind, H = self.config.rope_kind(i), self.config.head_size(i)
        assert kind is not None  # the caller has looked
        cos_BT1R, sin_BT1R = self.rope[kind]
        half = padded_rotary_dim(self.config, kind) // 2
        cut = [half, half, H - 2 * half] if 2 * half < H else [half, half]
        return rotate(self.graph, heads_BTNH, cos_BT1R, sin_BT1R, cut, name)

    def no_keys_and_values(self, i: int) -> list[str]:
        """Return nothing: a layer that looks at the keys and values of another reads what that gives."""
        return ["", ""]

    def sinks(self, name: str) -> str:
        """Add the sinks of a layer, [1, N, 1, 1]."""
        stored = self.stored(f"{name}.sinks")
        return self.graph.node("Reshape", [stored, self.graph.constant([1, -1, 1, 1])], f"{name}.sinks.by_head")

"""The prefill graph: it reads prompts into the cache, and computes nothing else.

It takes what the decoder's graph takes (decoder.py) but `num_logits_to_keep`, and gives `present.{i}.key|value` alone:
no logits, and of the last block that a cache keeps something of, no more than that: its keys and values, or what it
keeps in their place. Embedding, norms and tables are those of the decoder's graph, in its file of weights. The
projections are products of integers, with one scale for each row of a weight and one for each token of the activations:
faster than MatMulNBits for many tokens, and slower for one (docs/results/graph-and-settings.md).

Beside a decoder that keeps keys and values in int8, it makes floats of the past, rounds the new ones to the same grids,
and lets the queries look at both in floats: for many tokens that is faster than attention over int8. It then gives the
new keys and values alone, `present.{i}.key|value` int8 [B, K, T, H].

Shapes: B batch, T query tokens, P past tokens, K kv heads, H head dim; K columns and N rows of a weight.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from edgelm.architecture.quantization_recipe import RATES, Precision
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoints.checkpoint import Checkpoint
from edgelm_export.checkpoints.folded import FoldedCheckpoint
from edgelm_export.checkpoints.tensor_map import GATHERED
from edgelm_export.decoder import DecoderStack
from edgelm_export.graph.external_data import ExternalData
from edgelm_export.graph.graph import FLOAT, INT8, INT32, MICROSOFT
from edgelm_export.layers.linear_attention import add_memory, add_states
from edgelm_export.layers.mamba import add_mamba_memory
from edgelm_export.layers.mamba2 import add_mamba2_memory
from edgelm_export.layers.projection import Projections
from edgelm_export.quantize.channel_scales import ScaledHead
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.quantize.portions import Stored

_LARGEST, _ZERO = 127, 128  # of int8; uint8's place of zero
_STEP = 1 / _LARGEST
_SMALLEST = 1e-30  # a token whose activations are all zero


def build_prefill(
    checkpoint: Checkpoint, precision: Precision, data: ExternalData, scales: Sequence[NDArray[np.float32]] = ()
) -> onnx.ModelProto:
    """Build the prefill graph of a checkpoint, after `build_decoder`, whose external data are beside `data`.

    scales: float32 [K, 1, H] of each layer's keys and values, where the decoder keeps them in int8.
    """
    folded = FoldedCheckpoint(checkpoint)
    stack = _RoundingStack(folded, precision, data, scales) if scales else _PrefillStack(folded, precision, data)
    return stack.build()


def refuse_prefill_graph(config: ModelConfig) -> None:
    """Refuse what no prefill graph is written for.

    Raises:
        ExportError: the model has an encoder, experts, latent attention, or several residual streams.
    """
    has = {
        "an encoder": config.encoder is not None,
        "experts": config.num_experts > 0,
        "latent attention": config.kv_lora_rank is not None,
        "several residual streams": config.altup_num_inputs > 1,
    }
    for what, is_so in has.items():
        if is_so:
            raise ExportError(
                f"A {config.model_type} model has {what}, and no prefill graph is written for it. Export without one."
            )


class _PrefillStack(DecoderStack):
    def __init__(self, checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> None:
        super().__init__(checkpoint, precision, data)
        self.projections = _IntegerProjections(self.graph, ScaledHead(checkpoint), precision)

    def build(self) -> onnx.ModelProto:
        config, hidden = self.config, self.begin()
        last = max(filter(config.mixes, range(config.last_kept_layer + 1)))
        for i in range(last):
            hidden = self.block(hidden, i)
        before_attention, *_ = config.block_norms(last)
        hidden = self.block_norm(hidden, f"{self.name}.layers.{last}", before_attention)
        if config.is_conv(last):
            self.convolutions.opened(hidden, last)
        elif config.kind(last) == "linear_attention":
            add_memory(self, hidden, f"{self.name}.layers.{last}.linear_attn", *add_states(self, last))
        elif config.kind(last) == "mamba":
            add_mamba_memory(self, hidden, f"{self.name}.layers.{last}.mamba", *add_states(self, last))
        if config.has_mamba2(last):
            add_mamba2_memory(self, hidden, f"{self.name}.layers.{last}.mamba", *add_states(self, last))
        if config.attends(last):
            self.attended(hidden, last)
        self.convolutions.end()
        return self.graph.model(f"{config.model_type}-prefill")


class _RoundingStack(_PrefillStack):
    """Look at keys and values on the grids that a decoder keeps them on, whatever piece of a prompt they come with."""

    def __init__(
        self, checkpoint: Checkpoint, precision: Precision, data: ExternalData, scales: Sequence[NDArray[np.float32]]
    ) -> None:
        super().__init__(checkpoint, precision, data)
        self._scales = scales

    def attention_inputs(self) -> None:
        """Derive from the mask how many tokens there are behind the new ones, P, and with them."""
        super().attention_inputs()
        graph = self.graph
        tokens = graph.node("Shape", ["input_ids"], "cache.tokens", attributes={"start": 1, "end": 2})
        self.key_count = graph.node("Add", [self.last, graph.constant(1)], "cache.length")
        self._past_length = graph.node("Sub", [self.key_count, tokens], "cache.past_length")
        to_int32 = {"to": INT32}
        self.total_sequence_length = graph.node("Cast", [self.key_count], "cache.total_sequence_length", "", to_int32)

    def grouped_query_attention(self, qkv: list[str], i: int, name: str) -> str:
        """Turn queries and keys, round keys and values, and let the queries look at them and at the past."""
        config = self.config
        place = config.cached_layers.index(i)
        query, *new = self.apart(qkv, i, name)
        if self.rotation(i):
            query = self.turned_heads(query, config.query_heads(i), i, f"{name}.turned_query")
            new[0] = self.turned_heads(new[0], config.kv_heads(i), i, f"{name}.turned_key")
        past, scales = [], []
        for number, part in enumerate(("key", "value")):
            scale_K1H = self.graph.weight(f"{name}.{part[0]}_scale", self._scales[2 * place + number])
            past.append(self._past(i, part, scale_K1H, f"{name}.past_{part}"))
            new[number] = self._rounded(new[number], i, scale_K1H, f"{name}.new_{part}")
            scales.append(scale_K1H)
        output = self.look([query, *new], past, [f"{name}.all_keys", f"{name}.all_values"], [], i, name)
        for part, all_parts, scale_K1H in zip(("key", "value"), ("all_keys", "all_values"), scales, strict=True):
            self._give(f"{name}.{all_parts}", i, part, scale_K1H)
        return output

    def turning_positions(self) -> str:
        """Return the position of the first new token, [1]."""
        return self._past_length

    def _past(self, i: int, part: str, scale_K1H: str, name: str) -> str:
        """Make floats [B, K, P, H] of the filled part of a layer's cache."""
        graph = self.graph
        cache = graph.input(f"past_key_values.{i}.{part}", INT8, self.cache_shape(i, "capacity"))
        filled = [cache, graph.constant([0]), self._past_length, graph.constant([2])]
        integers = graph.node("Slice", filled, f"{name}.integers")
        floats = graph.node("Cast", [integers], f"{name}.floats", attributes={"to": FLOAT})
        return graph.node("Mul", [floats, scale_K1H], name)

    def _rounded(self, projected: str, i: int, scale_K1H: str, name: str) -> str:
        """Round keys or values [B, T, K * H] to their grids."""
        graph, K, H = self.graph, self.config.kv_heads(i), self.config.head_size(i)
        split = graph.constant([0, 0, K, H])
        heads_BTKH = graph.node("Reshape", [projected, split], f"{name}.heads")
        swap = {"perm": [0, 2, 1, 3]}
        heads_BKTH = graph.node("Transpose", [heads_BTKH], f"{name}.by_head", attributes=swap)
        steps = graph.node("Div", [heads_BKTH, scale_K1H], f"{name}.steps")
        whole = graph.node("Round", [steps], f"{name}.whole")
        bounds = [graph.constant(bound, np.float32) for bound in (-_ZERO, _LARGEST)]
        integers = graph.node("Clip", [whole, *bounds], f"{name}.integers")
        rounded_BKTH = graph.node("Mul", [integers, scale_K1H], f"{name}.rounded")
        rounded_BTKH = graph.node("Transpose", [rounded_BKTH], f"{name}.by_token", attributes=swap)
        joined = graph.constant([0, 0, K * H])
        return graph.node("Reshape", [rounded_BTKH, joined], name)

    def _give(self, floats: str, i: int, part: str, scale_K1H: str) -> None:
        """Give the integers of a layer's new keys or values, of `floats` [B, K, P + T, H], all of them.

        They are taken from there so that something reads what attention gives: ONNX Runtime frees what was read to the
        end, and keeps what nothing reads until all layers are done (docs/results/quantization.md).
        """
        graph = self.graph
        new = [floats, self._past_length, self.key_count, graph.constant([2])]
        rounded = graph.node("Slice", new, f"{floats}.new")
        steps = graph.node("Div", [rounded, scale_K1H], f"{floats}.steps")
        integers = graph.node("Round", [steps], f"{floats}.integers")  # whole but for what floats lose
        cache = graph.output(f"present.{i}.{part}", INT8, self.cache_shape(i, "tokens"))
        graph.node("Cast", [integers], cache, attributes={"to": INT8})


class _IntegerProjections(Projections):
    """Write the projections as products of integers.

    Source: the operator specification of com.microsoft.MatMulIntegerToFloat.
    """

    def read(self, name: str) -> Stored:
        """Read one matrix as the decoder's graph has it: in floats, but for embeddings, which both graphs share."""
        weight = super().read(name)
        if name in GATHERED:
            return weight
        return unpack(weight) if isinstance(weight, PackedWeight) else weight.astype(np.float32)

    def _product_without_bias(self, hidden: str, module: str, weight: Stored, output: str) -> str:
        assert not isinstance(weight, PackedWeight)
        if re.search(RATES, f"{module}.weight"):
            return super()._product_without_bias(hidden, module, weight, output)
        graph = self._graph
        values_KN, scales_N = integer_rows(weight)
        values = graph.weight(f"{module}.weight.rows", values_KN)
        scales = graph.weight(f"{module}.weight.row_scales", scales_N)
        step, zero = graph.constant(_STEP, np.float32), graph.constant(_ZERO, np.uint8)
        sizes = graph.node("Abs", [hidden], f"{module}.sizes")
        keep = {"keepdims": 1}
        largest = graph.node("ReduceMax", [sizes, graph.constant([-1])], f"{module}.largest", attributes=keep)
        largest_BT1 = graph.node("Max", [largest, graph.constant(_SMALLEST, np.float32)], f"{module}.token_scales")
        evened = graph.node("Div", [hidden, largest_BT1], f"{module}.evened")
        integers = graph.node("QuantizeLinear", [evened, step, zero], f"{module}.integers")
        inputs = [integers, values, step, scales, zero]
        product = graph.node("MatMulIntegerToFloat", inputs, f"{module}.product", MICROSOFT)
        return graph.node("Mul", [product, largest_BT1], output)


def integer_rows(weight_NK: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a weight to a grid of 8 bits for each row: int8 [K, N], and scales float32 [N]."""
    weight_NK = weight_NK.astype(np.float32, copy=False)
    scales_N = np.maximum(np.abs(weight_NK).max(1) / np.float32(_LARGEST), np.float32(_SMALLEST))
    return np.ascontiguousarray(np.rint(weight_NK / scales_N[:, None]).astype(np.int8).T), scales_N

"""The prefill graph: it reads prompts into the cache, and computes nothing else.

It takes what the decoder's graph takes (decoder.py) but `num_logits_to_keep`, and gives `present.{i}.key|value` alone:
no logits, and of the last block no more than its keys and values. Embedding, norms and tables are those of the
decoder's graph, in its file of weights. The projections are products of integers, with one scale for each row of a
weight and one for each token of the activations: faster than MatMulNBits for many tokens, and slower for one
(docs/results/graph-and-settings.md).

Shapes: B batch, T query tokens, K columns and N rows of a weight.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from edgelm.config import NORM_PLACEMENTS, ModelConfig
from edgelm.errors import ExportError
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.decoder import DecoderStack
from edgelm_export.external_data import ExternalData
from edgelm_export.folded import FoldedCheckpoint
from edgelm_export.graph import MICROSOFT
from edgelm_export.projection import Projections
from edgelm_export.quantize import Precision, Stored
from edgelm_export.quantize.packed import PackedWeight, unpack
from edgelm_export.tensor_map import EMBEDDING

_LARGEST, _ZERO = 127, 128  # of int8; uint8's place of zero
_STEP = 1 / _LARGEST
_SMALLEST = 1e-30  # a token whose activations are all zero


def build_prefill(checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> onnx.ModelProto:
    """Build the prefill graph of a checkpoint, after `build_decoder`, whose external data are beside `data`."""
    return _PrefillStack(FoldedCheckpoint(checkpoint), precision, data).build()


def refuse_prefill_graph(config: ModelConfig) -> None:
    """Refuse what no prefill graph is written for.

    Raises:
        ExportError: the model has an encoder, or experts.
    """
    if config.encoder is not None or config.num_experts:
        raise ExportError(
            f"A {config.model_type} model has {'an encoder' if config.encoder else 'experts'}, and no prefill graph is "
            "written for it. Export without one."
        )


class _PrefillStack(DecoderStack):
    def __init__(self, checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> None:
        super().__init__(checkpoint, precision, data)
        self.projections = _IntegerProjections(self.graph, checkpoint, precision)

    def build(self) -> onnx.ModelProto:
        config, hidden = self.config, self.begin()
        last = config.num_hidden_layers - 1
        for i in range(last):
            hidden = self.block(hidden, i)
        before_attention, *_ = NORM_PLACEMENTS[config.norm_placement]
        self.attended(self.block_norm(hidden, f"{self.name}.layers.{last}", before_attention), last)
        return self.graph.model(f"{config.model_type}-prefill")


class _IntegerProjections(Projections):
    """Write the projections as products of integers.

    Source: the operator specification of com.microsoft.MatMulIntegerToFloat.
    """

    def read(self, name: str) -> Stored:
        """Read one matrix as the decoder's graph has it: in floats, but for the embedding, which both graphs share."""
        weight = super().read(name)
        if name == EMBEDDING:
            return weight
        return unpack(weight) if isinstance(weight, PackedWeight) else weight.astype(np.float32)

    def _product_without_bias(self, hidden: str, module: str, weight: Stored, output: str) -> str:
        assert not isinstance(weight, PackedWeight)
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

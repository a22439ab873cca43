"""The Transformer as an ONNX graph: the twin of training/edgelm_training/model.py, in the same order.

Shapes: B batch, T query tokens, C capacity of the cache, D hidden, N query heads, K kv heads, H head dim, V vocabulary.

The graph takes `input_ids` [B, T], `attention_mask` [B, M] with a one for each filled or new position (M is any length
that holds them all), and the cache `past_key_values.{i}.key|value` [B, K, C, H]; it gives `logits` [B, T', V] and
`present.{i}.key|value`. Past and present may share memory. The optional scalar `num_logits_to_keep` says for how many
of the last positions logits are wanted; 0, the default, is all of them, as other runtimes expect.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.rope import cos_sin_tables, sinusoidal_table
from edgelm_export.checkpoint import Checkpoint
from edgelm_export.external_data import ExternalData
from edgelm_export.graph import MICROSOFT, Graph
from edgelm_export.projection import Projections
from edgelm_export.quantize import Precision
from edgelm_export.quantize.packed import PackedWeight

FLOAT, INT64, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32
_END = 2**63 - 1
_ROTARY_HEAD_MULTIPLE = 16

_ACTIVATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # x * sigmoid(alpha * x): with alpha 1 this is SiLU, in one node.
    "silu": ("QuickGelu", MICROSOFT, {"alpha": 1.0}),
    "gelu": ("Gelu", "", {}),
    "gelu_pytorch_tanh": ("Gelu", "", {"approximate": "tanh"}),
    "relu": ("Relu", "", {}),
}


def build_decoder(checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> onnx.ModelProto:
    """Build the graph of a checkpoint; its weights are read, quantized and written one after the other.

    Raises:
        ExportError: ONNX Runtime's operators cannot compute this config.
    """
    config = checkpoint.config
    if config.position == "rope" and config.head_dim % _ROTARY_HEAD_MULTIPLE:
        raise ExportError(
            f"head_dim is {config.head_dim}; ONNX Runtime's GroupQueryAttention rotates heads of a multiple of "
            f"{_ROTARY_HEAD_MULTIPLE}. Train with such a head_dim, or without rope."
        )
    return _Decoder(checkpoint, precision, data).build()


class _Decoder:
    def __init__(self, checkpoint: Checkpoint, precision: Precision, data: ExternalData) -> None:
        self.config: ModelConfig = checkpoint.config
        self.checkpoint = checkpoint
        self.graph = Graph(data)
        self.projections = Projections(self.graph, checkpoint, precision)

    def build(self) -> onnx.ModelProto:
        graph, config = self.graph, self.config
        self.inputs()
        hidden = self.embedding()
        for i in range(config.num_hidden_layers):
            layer = f"model.layers.{i}"
            attention = self.attention(self.norm(hidden, f"{layer}.input_layernorm"), i)
            hidden = graph.node("Add", [hidden, attention], f"{layer}.attention_residual")
            feed_forward = self.feed_forward(self.norm(hidden, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
            hidden = graph.node("Add", [hidden, feed_forward], f"{layer}.residual")
        self.head(self.norm(self.last_positions(hidden), "model.norm"))
        return graph.model(config.model_type)

    def inputs(self) -> None:
        """Declare inputs; derive what GroupQueryAttention wants from the mask: each row's last position, and C."""
        graph = self.graph
        graph.input("input_ids", INT64, ["batch", "tokens"])
        mask = graph.input("attention_mask", INT64, ["batch", "mask_length"])
        counts = graph.node(
            "ReduceSum", [mask, graph.constant([1])], "attention_mask.counts", attributes={"keepdims": 0}
        )
        self.last = graph.node("Sub", [counts, graph.constant(1)], "attention_mask.last")
        self.seqlens_k = graph.node("Cast", [self.last], "seqlens_k", attributes={"to": INT32})
        length = graph.node("Shape", [mask], "attention_mask.length", attributes={"start": 1, "end": 2})
        self.total_sequence_length = graph.node("Cast", [length], "total_sequence_length", attributes={"to": INT32})

    def embedding(self) -> str:
        graph, config = self.graph, self.config
        name = "model.embed_tokens"
        weight = self.projections.read(f"{name}.weight")
        if not isinstance(weight, PackedWeight):
            self.tied_parts = [graph.weight(f"{name}.weight", weight)]
            hidden = graph.node("Gather", [self.tied_parts[0], "input_ids"], f"{name}.output")
        else:
            self.tied_parts, self.tied_weight = self.projections.add_packed(name, weight), weight
            hidden = self.packed_rows(name, weight, self.tied_parts)
        if config.position in ("learned", "sinusoidal"):
            hidden = graph.node("Add", [hidden, self.position_embedding()], "model.embed_positions.added")
        if config.position == "rope":
            cos, sin = cos_sin_tables(config, config.max_position_embeddings)
            self.rope = [graph.weight("model.rope.cos", cos), graph.weight("model.rope.sin", sin)]
        return hidden

    def packed_rows(self, name: str, weight: PackedWeight, parts: list[str]) -> str:
        """Gather rows of a packed weight [V, blocks, bytes], and join their blocks.

        Gathering block by block, the operator reads the tensor in the shape that MatMulNBits has it in: as a matrix it
        would be a second copy in memory, a fifth of a small model.
        """
        graph = self.graph
        V, blocks, _ = weight.packed.shape
        scales = graph.node("Reshape", [parts[1], graph.constant([V, blocks, 1])], f"{name}.scales")
        attributes = {"bits": weight.bits, "block_size": weight.block_size, "gather_axis": 0, "quantize_axis": 2}
        inputs = [parts[0], "input_ids", scales]
        rows = graph.node("GatherBlockQuantized", inputs, f"{name}.blocks", MICROSOFT, attributes)
        joined = graph.node("Reshape", [rows, graph.constant([0, 0, blocks * weight.block_size])], f"{name}.output")
        if weight.columns == blocks * weight.block_size:
            return joined
        bounds = [graph.constant([value]) for value in (0, weight.columns, -1)]
        return graph.node("Slice", [joined, *bounds], f"{name}.unpadded")

    def position_embedding(self) -> str:
        """Gather the rows of positions `last - T + 1 .. last`."""
        graph, name = self.graph, "model.embed_positions"
        table = (
            self.checkpoint.tensor(f"{name}.weight")
            if self.config.position == "learned"
            else sinusoidal_table(self.config, self.config.max_position_embeddings)
        )
        tokens = graph.node("Shape", ["input_ids"], "input_ids.tokens", attributes={"start": 1, "end": 2})
        scalar = graph.node("Squeeze", [tokens], "input_ids.tokens_scalar")
        backwards = graph.node(
            "Range",
            [graph.node("Sub", [graph.constant(1), scalar], f"{name}.first"), graph.constant(1), graph.constant(1)],
            f"{name}.offsets",
        )  # 1 - T .. 0
        last_B1 = graph.node("Unsqueeze", [self.last, graph.constant([1])], f"{name}.last")
        positions_BT = graph.node("Add", [last_B1, backwards], f"{name}.positions")
        return graph.node("Gather", [graph.weight(f"{name}.weight", table), positions_BT], f"{name}.output")

    def norm(self, hidden: str, name: str) -> str:
        weight = self.graph.weight(f"{name}.weight", self.checkpoint.tensor(f"{name}.weight"))
        attributes = {"epsilon": self.config.norm_eps, "axis": -1}
        if self.config.norm == "rms":
            return self.graph.node("SimplifiedLayerNormalization", [hidden, weight], f"{name}.output", "", attributes)
        bias = self.graph.weight(f"{name}.bias", self.checkpoint.tensor(f"{name}.bias"))
        return self.graph.node("LayerNormalization", [hidden, weight, bias], f"{name}.output", "", attributes)

    def attention(self, hidden: str, i: int) -> str:
        """Grouped-query attention; rotation, cache and causal mask are inside the operator."""
        graph, config = self.graph, self.config
        name = f"model.layers.{i}.self_attn"
        shape: list[int | str] = ["batch", config.num_key_value_heads, "capacity", config.head_dim]
        past = [graph.input(f"past_key_values.{i}.{part}", FLOAT, shape) for part in ("key", "value")]
        present = [graph.output(f"present.{i}.{part}", FLOAT, shape) for part in ("key", "value")]
        qkv = self.projections.fused(hidden, [f"{name}.{part}_proj" for part in "qkv"], f"{name}.qkv_proj")
        if config.qk_norm:
            qkv = self.normed_heads(qkv, name)
        elif len(qkv) == 1:
            qkv += ["", ""]  # the operator splits a packed query, key and value itself
        inputs = [*qkv, *past, self.seqlens_k, self.total_sequence_length]
        attributes = {
            "num_heads": config.num_attention_heads,
            "kv_num_heads": config.num_key_value_heads,
            "scale": config.head_dim**-0.5,
            "do_rotary": int(config.position == "rope"),
        }
        if config.position == "rope":
            inputs += self.rope
        output = graph.node("GroupQueryAttention", inputs, [f"{name}.output", *present], MICROSOFT, attributes)
        return self.projections.linear(output, f"{name}.o_proj")

    def normed_heads(self, qkv: list[str], name: str) -> list[str]:
        """Norm each query and key head by itself; packed or not before, the three are apart after."""
        graph, H = self.graph, self.config.head_dim
        NH, KH = self.config.num_attention_heads * H, self.config.num_key_value_heads * H
        if len(qkv) == 1:
            parts = [f"{name}.{part}" for part in "qkv"]
            graph.node("Split", [qkv[0], graph.constant([NH, KH, KH])], parts, attributes={"axis": -1})
            qkv = parts
        normed = []
        for projected, module, width in ((qkv[0], f"{name}.q_norm", NH), (qkv[1], f"{name}.k_norm", KH)):
            heads = graph.node("Reshape", [projected, graph.constant([0, 0, width // H, H])], f"{module}.heads")
            shape = graph.constant([0, 0, width])
            normed.append(graph.node("Reshape", [self.norm(heads, module), shape], f"{module}.joined"))
        return [*normed, qkv[2]]

    def feed_forward(self, hidden: str, name: str) -> str:
        graph = self.graph
        if not self.config.mlp_gated:
            inner = self.activation(self.projections.linear(hidden, f"{name}.up_proj"), name)
            return self.projections.linear(inner, f"{name}.down_proj")
        outputs = self.projections.fused(hidden, [f"{name}.gate_proj", f"{name}.up_proj"], f"{name}.gate_up_proj")
        if len(outputs) == 1:
            parts = [f"{name}.gate", f"{name}.up"]
            graph.node("Split", outputs, parts, attributes={"axis": -1, "num_outputs": 2})
            outputs = parts
        gated = graph.node("Mul", [self.activation(outputs[0], name), outputs[1]], f"{name}.gated")
        return self.projections.linear(gated, f"{name}.down_proj")

    def activation(self, hidden: str, name: str) -> str:
        operator, domain, attributes = _ACTIVATIONS[self.config.hidden_act]
        return self.graph.node(operator, [hidden], f"{name}.activation", domain, attributes)

    def last_positions(self, hidden: str) -> str:
        """Keep the positions whose logits are wanted: the head is a tenth of a decode step, and most of a prefill's."""
        graph = self.graph
        keep = graph.input("num_logits_to_keep", INT64, [])
        graph.weight(keep, np.array(0, np.int64))
        start = graph.node(
            "Neg", [graph.node("Unsqueeze", [keep, graph.constant([0])], f"{keep}.list")], f"{keep}.start"
        )
        inputs = [hidden, start, graph.constant([_END]), graph.constant([1])]
        return graph.node("Slice", inputs, "model.last_positions")

    def head(self, hidden: str) -> None:
        graph, config = self.graph, self.config
        if not config.tie_word_embeddings:
            self.projections.head(hidden, "logits")
        elif len(self.tied_parts) > 1:
            self.projections.packed_product(hidden, self.tied_parts, self.tied_weight, "logits")
        else:
            transposed_DV = graph.node("Transpose", self.tied_parts, "lm_head.weight", attributes={"perm": [1, 0]})
            graph.node("MatMul", [hidden, transposed_DV], "logits")
        graph.output("logits", FLOAT, ["batch", "kept", config.vocab_size])

"""The operators of a layer beside its products: norm, SiLU, attention without a cache; ONNX Runtime's or ONNX's own.

Shapes: B batch, T query tokens, S key tokens, N heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from edgelm.config import ModelConfig
from edgelm_export.graph.graph import MICROSOFT, Graph
from edgelm_export.layers.standard_attention import Attention, heads_first, split_heads


class LayerOperators(Protocol):
    """One way to compute them. `name` is what the names of the added nodes begin with."""

    def rms_norm(  # noqa: D102
        self, graph: Graph, hidden: str, weight: str, epsilon: float, name: str, addends: Sequence[str] = ()
    ) -> str: ...

    def silu(self, graph: Graph, hidden: str, name: str) -> str: ...  # noqa: D102

    def attention(  # noqa: D102
        self, graph: Graph, config: ModelConfig, qkv: list[str], name: str, bias: str = "", *, by_head: bool = False
    ) -> str: ...


class OnnxRuntimeOperators:
    """One operator for each: the fastest on a CPU.

    Source: the operator specifications of com.microsoft.QuickGelu, SkipSimplifiedLayerNormalization and
    MultiHeadAttention.
    """

    def rms_norm(
        self, graph: Graph, hidden: str, weight: str, epsilon: float, name: str, addends: Sequence[str] = ()
    ) -> str:
        """Add `hidden / sqrt(mean(hidden ** 2) + epsilon) * weight` over the last dimension.

        addends: two of hidden's shape that it is the sum of; where that was the last node, one operator does both.
        """
        if addends and graph.take_back(hidden):
            outputs = [f"{name}.output", "", "", hidden]
            inputs = [*addends, weight]
            return graph.node("SkipSimplifiedLayerNormalization", inputs, outputs, MICROSOFT, {"epsilon": epsilon})
        attributes = {"epsilon": epsilon, "axis": -1}
        return graph.node("SimplifiedLayerNormalization", [hidden, weight], f"{name}.output", "", attributes)

    def silu(self, graph: Graph, hidden: str, name: str) -> str:
        """Add `hidden * sigmoid(hidden)`: QuickGelu is x * sigmoid(alpha * x)."""
        return graph.node("QuickGelu", [hidden], f"{name}.activation", MICROSOFT, {"alpha": 1.0})

    def attention(
        self, graph: Graph, config: ModelConfig, qkv: list[str], name: str, bias: str = "", *, by_head: bool = False
    ) -> str:
        """Add what queries [B, T, N * H] gather of all keys and values: [B, S, N * H], or by head [B, N, S, H].

        bias: added to the scores, [1 or B, 1 or N, T, S]. MultiHeadAttention has no soft-cap, and no heads that share
        keys; such attention is what it is in the standard.
        """
        shares_keys = config.num_key_value_heads != config.num_attention_heads
        if shares_keys or config.attn_logit_softcapping is not None:
            return StandardOperators().attention(graph, config, qkv, name, bias, by_head=by_head)
        attributes = {"num_heads": config.num_attention_heads, "scale": config.attention_scale}
        inputs = [*qkv, "", "", bias] if bias else qkv
        return graph.node("MultiHeadAttention", inputs, f"{name}.output", MICROSOFT, attributes)


class StandardOperators:
    """Operators of the ONNX standard, which every runtime knows (opset 21).

    On a CPU, ONNX Runtime joins the nodes of a norm, and those of SiLU, to its own operator when it loads the graph.
    """

    def rms_norm(
        self, graph: Graph, hidden: str, weight: str, epsilon: float, name: str, addends: Sequence[str] = ()
    ) -> str:
        """Add `hidden / sqrt(mean(hidden ** 2) + epsilon) * weight` over the last dimension."""
        squares = graph.node("Pow", [hidden, graph.constant(2.0, np.float32)], f"{name}.squares")
        mean = graph.node("ReduceMean", [squares, graph.constant([-1])], f"{name}.mean", attributes={"keepdims": 1})
        positive = graph.node("Add", [mean, graph.constant(epsilon, np.float32)], f"{name}.mean_and_epsilon")
        size = graph.node("Sqrt", [positive], f"{name}.size")
        evened = graph.node("Div", [hidden, size], f"{name}.evened")
        return graph.node("Mul", [evened, weight], f"{name}.output")

    def silu(self, graph: Graph, hidden: str, name: str) -> str:
        """Add `hidden * sigmoid(hidden)`."""
        return graph.node("Mul", [hidden, graph.node("Sigmoid", [hidden], f"{name}.sigmoid")], f"{name}.activation")

    def attention(
        self, graph: Graph, config: ModelConfig, qkv: list[str], name: str, bias: str = "", *, by_head: bool = False
    ) -> str:
        """Add what queries [B, T, N * H] gather of all keys and values: [B, S, N * H], or by head [B, N, S, H].

        bias: added to the scores, [1 or B, 1 or N, T, S].
        """
        N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        heads = ((qkv[0], "q", N), *([] if by_head else [(qkv[1], "k", K), (qkv[2], "v", K)]))
        apart = [
            heads_first(graph, split_heads(graph, x, count, H, f"{name}.{part}"), f"{name}.{part}")
            for x, part, count in heads
        ]
        attention = Attention(
            name=name,
            heads=N,
            kv_heads=K,
            head_dim=H,
            scale=config.attention_scale,
            soft_cap=config.attn_logit_softcapping,
            addends=[bias] if bias else [],
        )
        return attention.add(graph, *apart, *qkv[len(apart) :])


# One row for each of edgelm.architecture.quantization_recipe.OPERATOR_SETS.
LAYER_OPERATORS: Mapping[str, LayerOperators] = {"onnxruntime": OnnxRuntimeOperators(), "standard": StandardOperators()}

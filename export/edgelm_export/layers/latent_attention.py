"""Multi-head latent attention in a decoder's graph: the twin of edgelm_training/layers/latent_attention.py.

Keys and values are one head of R + L numbers a token, of which GroupQueryAttention keeps one copy: its past keys are
its past values, and what it gives of those, `shared.{i}.value`, may be the same memory. Each head's two matrices are
products of their own, so that they lie on a grid as all others do.
Shapes: B batch, T query tokens, N query heads, H = R + L: what turns of a token and its latent vector, P what does not
turn of a query, Y values of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgelm.architecture.layer_features import LATENT_NORM_EPS

if TYPE_CHECKING:
    from edgelm_export.decoder import DecoderStack


def add_latent_attention(stack: DecoderStack, hidden: str, i: int, name: str) -> str:
    """Add the attention of layer `i`, up to its output projection: [B, T, N * Y]."""
    graph, config = stack.graph, stack.config
    N, R, L = config.num_attention_heads, config.rotary_dim, config.kv_lora_rank or 0
    queries = stack.turned_heads(_queries(stack, hidden, name), N, i, f"{name}.turned_query")
    keys = stack.turned_heads(_keys(stack, hidden, name), 1, i, f"{name}.turned_key")
    gathered = stack.grouped_query_attention([queries, keys, keys], i, name)
    heads = graph.node("Reshape", [gathered, graph.constant([0, 0, N, R + L])], f"{name}.gathered")
    parts = [f"{name}.gathered.turned", f"{name}.gathered.latent"]
    graph.node("Split", [heads, graph.constant([R, L])], parts, attributes={"axis": -1})
    return _by_head(stack, parts[1], N * L, name, "v_b_proj")


def _queries(stack: DecoderStack, hidden: str, name: str) -> str:
    """Return the queries, each taken to where the latent vectors are, [B, T, N * H]."""
    graph, config = stack.graph, stack.config
    N, P, R, H = config.num_attention_heads, config.qk_nope_head_dim or 0, config.rotary_dim, config.head_dim
    if config.q_lora_rank is None:
        projected = stack.projections.linear(hidden, f"{name}.q_proj")
    else:
        small = stack.projections.linear(hidden, f"{name}.q_a_proj")
        normed = stack.norm(small, f"{name}.q_a_layernorm", config.q_lora_rank, LATENT_NORM_EPS)
        projected = stack.projections.linear(normed, f"{name}.q_b_proj")
    heads = graph.node("Reshape", [projected, graph.constant([0, 0, N, P + R])], f"{name}.queries.heads")
    parts = [f"{name}.queries.nope", f"{name}.queries.turning"]
    graph.node("Split", [heads, graph.constant([P, R])], parts, attributes={"axis": -1})
    latent = _by_head(stack, parts[0], N * P, name, "k_b_proj")
    latent = graph.node("Reshape", [latent, graph.constant([0, 0, N, H - R])], f"{name}.queries.latent")
    whole = graph.node("Concat", [parts[1], latent], f"{name}.queries.whole", attributes={"axis": -1})
    return graph.node("Reshape", [whole, graph.constant([0, 0, N * H])], f"{name}.queries")


def _keys(stack: DecoderStack, hidden: str, name: str) -> str:
    """Return what is kept of the new tokens, before it turns, [B, T, H]."""
    graph, R, L = stack.graph, stack.config.rotary_dim, stack.config.kv_lora_rank or 0
    parts = [f"{name}.latent", f"{name}.turning"]
    projected = stack.projections.linear(hidden, f"{name}.kv_a_proj_with_mqa")
    graph.node("Split", [projected, graph.constant([L, R])], parts, attributes={"axis": -1})
    normed = stack.norm(parts[0], f"{name}.kv_a_layernorm", L, LATENT_NORM_EPS)
    return graph.node("Concat", [parts[1], normed], f"{name}.keys", attributes={"axis": -1})


def _by_head(stack: DecoderStack, heads: str, width: int, name: str, part: str) -> str:
    """Project each of N heads [B, T, N, width / N] by its own matrix, [B, T, N * …]."""
    graph, N = stack.graph, stack.config.num_attention_heads
    modules = [f"{name}.heads.{head}.{part}" for head in range(N)]
    read = [f"{module}.input" for module in modules]
    joined = graph.node("Reshape", [heads, graph.constant([0, 0, width])], f"{name}.{part}.inputs")
    graph.node("Split", [joined], read, attributes={"axis": -1, "num_outputs": N})
    made = [stack.projections.linear(head, module) for head, module in zip(read, modules, strict=True)]
    return graph.node("Concat", made, f"{name}.{part}.heads", attributes={"axis": -1})

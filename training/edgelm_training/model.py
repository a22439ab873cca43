"""The Transformer: a decoder that reads token ids and gives, at every position, the logits of the next token.

`edgelm.config.ModelConfig` describes it; every branch below is one of its fields. The graph that ONNX Runtime runs is
built by export/edgelm_export/decoder.py from the same fields in the same order, and this file is its oracle: it keeps
no cache, fuses nothing, and computes the whole prefix for every new token.

    ids ─► embeddings ─► block ─► … ─► block ─► norm ─► head ─► logits
                         block: x + attention(norm(x)), then x + feed_forward(norm(x))

Shapes are suffixes: B batch, T tokens (each is a query and a key), D hidden size, N query heads, K key-value heads,
H head dimension, F feed-forward size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgelm import rope
from edgelm.config import ModelConfig
from edgelm.errors import ContextLengthError

NORMS: dict[str, Callable[..., nn.Module]] = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}

# cos and sin of each position's angles.
Rotation = tuple[Tensor, Tensor]

# Standard deviation of a fresh weight, as in GPT-2.
INITIAL_STD = 0.02


class Transformer(nn.Module):
    """Compute next-token logits with the model that a ModelConfig describes.

    Fresh weights are random: normal with a standard deviation of 0.02, less where a block adds to the residual stream.
    The same `torch.manual_seed` gives the same ones. `state_dict()` has the names and shapes of
    `config.tensor_shapes()`, in its order.

    activation_checkpointing: while training, keep only each block's input for the backward pass and compute the rest
    again, which saves most of the memory for about a third more time (arXiv:1604.06174).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._initialize()

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Return the logits [B, T, V] of the token after each of `ids_BT` (int64).

        documents_BT: int64 numbers, the same for neighbouring tokens of one document. A token then sees its own
        document alone and has its position there, so several documents in one row give what each gives by itself.

        Raises:
            ContextLengthError: T is more than the model's context.
        """
        hidden_BTD = self.model(ids_BT, documents_BT, recompute=self.activation_checkpointing and self.training)
        # A tied head asks: which token's embedding does the last hidden state point at?
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return functional.linear(hidden_BTD, head.weight)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Each block adds twice to the residual stream. Smaller weights there keep the sum's variance the same at any
        # depth (GPT-2 report, 2.3).
        for block in self.model.layers:
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(projection.weight, std=INITIAL_STD / math.sqrt(2 * self.config.num_hidden_layers))


class Decoder(nn.Module):
    """Turn token ids into hidden states: embeddings, positions, blocks, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        context = config.max_position_embeddings
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(context, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = _norm(config, config.hidden_size)
        # Computed, not learned, so no part of a checkpoint.
        if config.position == "sinusoidal":
            self.register_buffer(
                "sinusoids_TD", torch.from_numpy(rope.sinusoidal_table(config, context)), persistent=False
            )
        if config.position == "rope":
            cos_TH, sin_TH = map(torch.from_numpy, rope.cos_sin_tables(config, context))
            self.register_buffer("cos_TH", cos_TH, persistent=False)
            self.register_buffer("sin_TH", sin_TH, persistent=False)

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None, *, recompute: bool = False) -> Tensor:
        """Return the hidden states [B, T, D] after the final norm; `recompute` keeps only the blocks' inputs."""
        length = ids_BT.shape[1]
        if length > self.config.max_position_embeddings:
            raise ContextLengthError(
                f"The input has {length} tokens; the model's context holds {self.config.max_position_embeddings}."
            )
        positions, mask_B1TT = torch.arange(length, device=ids_BT.device), None  # [T], or [B, T] with documents
        if documents_BT is not None:
            starts_BT = document_starts(documents_BT)
            mask_B1TT = ((starts_BT[:, :, None] == starts_BT[:, None, :]).tril())[:, None]
            positions = positions - starts_BT
        hidden_BTD = self.embed_tokens(ids_BT)
        if self.config.position == "learned":
            hidden_BTD = hidden_BTD + self.embed_positions(positions)
        if self.config.position == "sinusoidal":
            hidden_BTD = hidden_BTD + self.sinusoids_TD[positions]
        rotation = (self.cos_TH[positions], self.sin_TH[positions]) if self.config.position == "rope" else None
        for block in self.layers:
            if recompute:
                hidden_BTD = checkpoint(block, hidden_BTD, rotation, mask_B1TT, use_reentrant=False)
            else:
                hidden_BTD = block(hidden_BTD, rotation, mask_B1TT)
        return self.norm(hidden_BTD)


def document_starts(documents_BT: Tensor) -> Tensor:
    """Return for each token the place [B, T] in its row where its document begins."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = functional.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return torch.where(begins_BT, places_T, 0).cummax(1).values


class Block(nn.Module):
    """Add to each position what attention brings from earlier ones, then what the feed-forward makes of it.

    Norms stand before each part and the residual stream itself is never normalized ("pre-norm", arXiv:2002.04745).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = _norm(config, config.hidden_size)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = _norm(config, config.hidden_size)
        self.mlp = FeedForward(config)

    def forward(self, hidden_BTD: Tensor, rotation: Rotation | None, mask_B1TT: Tensor | None) -> Tensor:
        """Return the residual stream [B, T, D] after this block."""
        hidden_BTD = hidden_BTD + self.self_attn(self.input_layernorm(hidden_BTD), rotation, mask_B1TT)
        return hidden_BTD + self.mlp(self.post_attention_layernorm(hidden_BTD))


class Attention(nn.Module):
    """Let each position look at itself and at those before it, with N query heads over K key-value heads.

    K = N is multi-head attention (arXiv:1706.03762), K = 1 multi-query, in between grouped-query attention
    (arXiv:2305.13245): N/K neighbouring query heads share one key-value head, and the cache of a fast runtime shrinks
    by as much.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        self.config = config
        self.q_proj = nn.Linear(D, N * H, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * H, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * H, bias=config.attention_bias)
        self.o_proj = nn.Linear(N * H, D, bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = _norm(config, H)
            self.k_norm = _norm(config, H)

    def forward(self, hidden_BTD: Tensor, rotation: Rotation | None, mask_B1TT: Tensor | None) -> Tensor:
        """Return what each position gathers [B, T, D].

        rotation: cos and sin, each [T, H/2] or [B, T, H/2]. mask_B1TT: true where a query sees a key; without it, a
        query sees every key that is not later.
        """
        q_BNTH = self._split_heads(self.q_proj(hidden_BTD))
        k_BKTH = self._split_heads(self.k_proj(hidden_BTD))
        v_BKTH = self._split_heads(self.v_proj(hidden_BTD))
        if self.config.qk_norm:
            # Each head by itself, so that no score grows with the size of its vectors (arXiv:2302.05442).
            q_BNTH, k_BKTH = self.q_norm(q_BNTH), self.k_norm(k_BKTH)
        if rotation is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, *rotation), rotate(k_BKTH, *rotation)
        # softmax(q kᵀ / √H, over the keys that are not later than the query) v
        mixed_BNTH = functional.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, attn_mask=mask_B1TT, is_causal=mask_B1TT is None, enable_gqa=True
        )
        mixed_BTNH = mixed_BNTH.transpose(1, 2)
        return self.o_proj(mixed_BTNH.flatten(2))

    def _split_heads(self, projected: Tensor) -> Tensor:
        """Turn [B, T, heads * H] into [B, heads, T, H]."""
        return projected.unflatten(2, (-1, self.config.head_dim)).transpose(1, 2)


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) of a head by its position's angle; the tables are [T, H/2] or [B, T, H/2].

    The dot product of a query and a key then depends on their distance only (arXiv:2104.09864).
    """
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)  # the same for every head
    first, second = x_BNTH.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class FeedForward(nn.Module):
    """Transform each position by itself: up to F, an activation, down to D; with a gate, SwiGLU and its kin.

    A gate (arXiv:2002.05202) multiplies the plain projection by an activated one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, F = config.hidden_size, config.intermediate_size
        self.config = config
        if config.mlp_gated:
            self.gate_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F, D, bias=config.mlp_bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the transformed positions [B, T, D]."""
        activation = ACTIVATIONS[self.config.hidden_act]
        up_BTF = self.up_proj(hidden_BTD)
        if self.config.mlp_gated:
            return self.down_proj(activation(self.gate_proj(hidden_BTD)) * up_BTF)
        return self.down_proj(activation(up_BTF))


def _norm(config: ModelConfig, size: int) -> nn.Module:
    return NORMS[config.norm](size, eps=config.norm_eps)


@torch.no_grad()
def generate(
    model: Transformer,
    input_ids: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Continue `input_ids`, and return the new tokens; an end token of the config is the last of them.

    temperature 0.0 takes the most likely token; above, it draws from softmax(logits / temperature) with `generator`.
    It also stops where the context is full.

    Raises:
        ContextLengthError: `input_ids` is empty, or longer than the context.
    """
    if not input_ids:
        raise ContextLengthError("The prompt has no tokens; there is nothing to continue.")
    device = model.model.embed_tokens.weight.device
    ids = list(input_ids)
    new_ids: list[int] = []
    while len(new_ids) < max_new_tokens:
        logits_V = model(torch.tensor([ids], device=device))[0, -1].float()
        if temperature == 0.0:
            next_id = int(logits_V.argmax())
        else:
            probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
            next_id = int(torch.multinomial(probabilities_V, 1, generator=generator))
        ids.append(next_id)
        new_ids.append(next_id)
        if next_id in model.config.eos_token_ids or len(ids) > model.config.max_position_embeddings:
            break
    return new_ids

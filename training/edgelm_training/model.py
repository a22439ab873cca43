"""The Transformer: a decoder that reads token ids and gives, at every position, the logits of the next token.

`edgelm.config.ModelConfig` describes it; every branch below is one of its fields. The graph that ONNX Runtime runs is
built by export/edgelm_export/decoder.py from the same fields in the same order, and this file is its oracle: it keeps
no cache, fuses nothing, and computes the whole prefix for every new token.

    ids ─► embeddings ─► block ─► … ─► block ─► norm ─► head ─► logits
                         block: x + attention(norm(x)), then x + feed_forward(norm(x))

Shapes are suffixes: B batch, T tokens (each is a query and a key), D hidden size, N query heads, K key-value heads,
H head dimension, R the part of it that turns, F feed-forward size, E experts, V vocabulary.
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
from edgelm.config import NORM_PLACEMENTS, ModelConfig
from edgelm.errors import ContextLengthError


class OffsetRMSNorm(nn.RMSNorm):
    """Multiply by 1 + weight, so that weight decay pulls the factor to one instead of zero."""

    def reset_parameters(self) -> None:
        """Begin at a factor of one."""
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a root mean square of one over the last dimension, times the factor."""
        return functional.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": nn.RMSNorm,
    "rms_offset": OffsetRMSNorm,
    "rms_plain": partial(nn.RMSNorm, elementwise_affine=False),
    "layer": nn.LayerNorm,
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),  # arXiv:2109.08668
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
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        elif config.lm_head_bias:
            self.lm_head = nn.ParameterDict({"bias": torch.zeros(config.vocab_size)})
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
        logits_BTV = functional.linear(hidden_BTD, head.weight, self.lm_head.bias if self.config.lm_head_bias else None)
        return soft_cap(scaled(logits_BTV, 1 / self.config.logits_scaling), self.config.final_logit_softcapping)

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # Each block adds twice to the residual stream. Smaller weights there keep the sum's variance the same at any
        # depth (GPT-2 report, 2.3).
        for name, module in self.model.layers.named_modules():
            if name.endswith((".o_proj", ".down_proj")):
                nn.init.normal_(module.weight, std=INITIAL_STD / math.sqrt(2 * self.config.num_hidden_layers))


class Decoder(nn.Module):
    """Turn token ids into hidden states: embeddings, positions, blocks, final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        context = config.max_position_embeddings
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = nn.Embedding(context, config.hidden_size)
        if config.embedding_norm:
            self.embed_norm = _norm(config, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = _norm(config, config.hidden_size)
        # Computed, not learned, so no part of a checkpoint.
        if config.position == "sinusoidal":
            self.register_buffer(
                "sinusoids_TD", torch.from_numpy(rope.sinusoidal_table(config, context)), persistent=False
            )
        kinds = {config.rope_kind(layer) for layer in range(config.num_hidden_layers)} - {None}
        self.rotary = nn.ModuleDict({kind: Rotary(config, kind) for kind in sorted(kinds)})

    def forward(self, ids_BT: Tensor, documents_BT: Tensor | None = None, *, recompute: bool = False) -> Tensor:
        """Return the hidden states [B, T, D] after the final norm; `recompute` keeps only the blocks' inputs."""
        length = ids_BT.shape[1]
        if length > self.config.max_position_embeddings:
            raise ContextLengthError(
                f"The input has {length} tokens; the model's context holds {self.config.max_position_embeddings}."
            )
        view = View(length, documents_BT, ids_BT.device)
        hidden_BTD = scaled(self.embed_tokens(ids_BT), self.config.embedding_multiplier)
        if self.config.position == "learned":
            hidden_BTD = hidden_BTD + self.embed_positions(view.positions)
        if self.config.position == "sinusoidal":
            hidden_BTD = hidden_BTD + self.sinusoids_TD[view.positions]
        if self.config.embedding_norm:
            hidden_BTD = self.embed_norm(hidden_BTD)
        rotations = {kind: rotary(view) for kind, rotary in self.rotary.items()}
        windows = {self.config.window(layer) for layer in range(self.config.num_hidden_layers)}
        masks = {window: view.mask(window) for window in windows}
        for layer, block in enumerate(self.layers):
            rotation, mask = rotations.get(self.config.rope_kind(layer)), masks[self.config.window(layer)]
            if recompute:
                hidden_BTD = checkpoint(block, hidden_BTD, rotation, mask, use_reentrant=False)
            else:
                hidden_BTD = block(hidden_BTD, rotation, mask)
        return self.norm(hidden_BTD)


class View:
    """What each token of the rows sees, and where it stands: in its row, or in its document where a row has several.

    positions: int64 [T], or [B, T] with documents. lengths: of the text that a token belongs to, a number or [B, T].
    """

    def __init__(self, length: int, documents_BT: Tensor | None, device: torch.device) -> None:
        self._places_T = torch.arange(length, device=device)
        self.positions: Tensor = self._places_T
        self.lengths: int | Tensor = length
        self._same_document_BTT: Tensor | None = None
        if documents_BT is not None:
            starts_BT = document_starts(documents_BT)
            self.positions = self._places_T - starts_BT
            self._same_document_BTT = starts_BT[:, :, None] == starts_BT[:, None, :]
            self.lengths = self._same_document_BTT.sum(-1)

    def mask(self, window: int | None) -> Tensor | None:
        """Return what a query (second to last dimension) sees of the keys, [T, T] or [B, 1, T, T].

        None is every key that is not later, which attention computes without a mask, and faster.
        """
        window = None if window is None or window >= len(self._places_T) else window
        if window is None and self._same_document_BTT is None:
            return None
        distances_TT = self._places_T[:, None] - self._places_T
        sees_TT = distances_TT >= 0
        if window is not None:
            sees_TT = sees_TT & (distances_TT < window)
        return sees_TT if self._same_document_BTT is None else (sees_TT & self._same_document_BTT)[:, None]


def document_starts(documents_BT: Tensor) -> Tensor:
    """Return for each token the place [B, T] in its row where its document begins."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = functional.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0), value=True)
    return torch.where(begins_BT, places_T, 0).cummax(1).values


class Rotary(nn.Module):
    """Give each position's rotation: cos and sin of its angles."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.context = config.max_position_embeddings
        self.short_context = config.short_context if rope.has_long_table(config, kind) else None
        cos, sin = map(torch.from_numpy, rope.cos_sin_tables(config, config.max_position_embeddings, kind))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, view: View) -> Rotation:
        """Return cos and sin, each [T, R/2] or [B, T, R/2]."""
        rows = view.positions
        if self.short_context is not None:
            is_long = torch.as_tensor(view.lengths > self.short_context)
            rows = rows + self.context * is_long.to(rows)
        return self.cos[rows], self.sin[rows]


class Block(nn.Module):
    """Add to each position what attention brings from earlier ones, then what the feed-forward makes of it.

    Norms stand before each part and the residual stream itself is never normalized ("pre-norm", arXiv:2002.04745);
    other placements norm what a part adds, or both. In parallel, both parts read the same input (GPT-J).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        names = before_attention, after_attention, before_mlp, after_mlp = NORM_PLACEMENTS[config.norm_placement]
        parts = {before_attention: None, "self_attn": Attention(config), after_attention: None}
        feed_forward = Experts(config) if config.has_experts(layer) else FeedForward(config, config.intermediate_size)
        parts |= {before_mlp: None, "mlp": feed_forward, after_mlp: None}
        for name, part in parts.items():
            if name is not None:
                self.add_module(name, part or _norm(config, config.hidden_size))
        self.norm_names = names

    def forward(self, hidden_BTD: Tensor, rotation: Rotation | None, mask: Tensor | None) -> Tensor:
        """Return the residual stream [B, T, D] after this block."""
        before_attention, after_attention, before_mlp, after_mlp = self.norm_names
        multiplier = self.config.residual_multiplier
        attended_BTD = self.self_attn(self._normed(before_attention, hidden_BTD), rotation, mask)
        attended_BTD = hidden_BTD + scaled(self._normed(after_attention, attended_BTD), multiplier)
        mlp_input_BTD = hidden_BTD if self.config.parallel_residual else attended_BTD
        transformed_BTD = self.mlp(self._normed(before_mlp, mlp_input_BTD))
        return attended_BTD + scaled(self._normed(after_mlp, transformed_BTD), multiplier)

    def _normed(self, name: str | None, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if name is None else self.get_submodule(name)(hidden_BTD)


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
        self.sinks = nn.Parameter(torch.zeros(N)) if config.attention_sinks else None
        self.q_proj = nn.Linear(D, N * H, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * H, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * H, bias=config.attention_bias)
        self.o_proj = nn.Linear(N * H, D, bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = _norm(config, H if config.qk_norm_scope == "head" else N * H)
            self.k_norm = _norm(config, H if config.qk_norm_scope == "head" else K * H)

    def forward(self, hidden_BTD: Tensor, rotation: Rotation | None, mask: Tensor | None) -> Tensor:
        """Return what each position gathers [B, T, D].

        rotation: cos and sin, each [T, R/2] or [B, T, R/2]. mask: [T, T] or [B, 1, T, T], true where a query sees a
        key; without it, a query sees every key that is not later.
        """
        q_BTD, k_BTD, v_BTD = self.q_proj(hidden_BTD), self.k_proj(hidden_BTD), self.v_proj(hidden_BTD)
        if self.config.qk_norm and self.config.qk_norm_scope == "projection":
            q_BTD, k_BTD = self.q_norm(q_BTD), self.k_norm(k_BTD)
        q_BNTH, k_BKTH, v_BKTH = map(self._split_heads, (q_BTD, k_BTD, v_BTD))
        if self.config.qk_norm and self.config.qk_norm_scope == "head":
            # Each head by itself, so that no score grows with the size of its vectors (arXiv:2302.05442).
            q_BNTH, k_BKTH = self.q_norm(q_BNTH), self.k_norm(k_BKTH)
        if rotation is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, *rotation), rotate(k_BKTH, *rotation)
        scale, cap = self.config.attention_scale, self.config.attn_logit_softcapping
        mixed_BNTH = attend(q_BNTH, k_BKTH, v_BKTH, mask, scale, cap, self.sinks)
        return self.o_proj(mixed_BNTH.transpose(1, 2).flatten(2))

    def _split_heads(self, projected: Tensor) -> Tensor:
        """Turn [B, T, heads * H] into [B, heads, T, H]."""
        return projected.unflatten(2, (-1, self.config.head_dim)).transpose(1, 2)


def attend(
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float | None = None,
    sinks_N: Tensor | None = None,
) -> Tensor:
    """Return softmax(q kᵀ · scale, over the keys that the mask lets through) v, [B, N, T, H].

    sinks_N: scores of one more key without a value, so that a head may look at nothing (arXiv:2309.17453, learned).
    """
    if cap is None and sinks_N is None:
        return functional.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    shared = q_BNTH.shape[1] // k_BKTH.shape[1]
    scores_BNTT = soft_cap(q_BNTH @ k_BKTH.repeat_interleave(shared, 1).mT * scale, cap)
    if mask is None:
        mask = torch.ones_like(scores_BNTT[0, 0], dtype=torch.bool).tril()
    scores_BNTT = scores_BNTT.masked_fill(~mask, -torch.inf)
    if sinks_N is None:
        weights_BNTT = scores_BNTT.softmax(-1)
    else:
        sinks_BNT1 = sinks_N[:, None, None].to(scores_BNTT).expand(*scores_BNTT.shape[:-1], 1)
        weights_BNTT = torch.cat((scores_BNTT, sinks_BNT1), dim=-1).softmax(-1)[..., :-1]
    return weights_BNTT @ v_BKTH.repeat_interleave(shared, 1)


def scaled(x: Tensor, factor: float) -> Tensor:
    """Multiply, where there is something to multiply: a pass over the logits is not free."""
    return x if factor == 1.0 else x * factor


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """Bend `x` so that it stays within -cap and cap (arXiv:2408.00118, 2)."""
    return x if cap is None else cap * torch.tanh(x / cap)


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + R/2) of a head by its position's angle; the tables are [T, R/2] or [B, T, R/2].

    The dot product of a query and a key then depends on their distance only (arXiv:2104.09864). Dimensions from R on
    stay as they are.
    """
    cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)  # the same for every head
    half = cos.shape[-1]
    first, second, rest = x_BNTH.split([half, half, x_BNTH.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


class FeedForward(nn.Module):
    """Transform each position by itself: up to F, an activation, down to D; with a gate, SwiGLU and its kin.

    A gate (arXiv:2002.05202) multiplies the plain projection by an activated one.
    """

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        D, F = config.hidden_size, size
        self.config = config
        if config.mlp_gated:
            self.gate_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F, D, bias=config.mlp_bias)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the transformed positions [B, T, D]."""
        activation, limit = ACTIVATIONS[self.config.hidden_act], self.config.swiglu_limit
        up_BTF = self.up_proj(hidden_BTD)
        if not self.config.mlp_gated:
            return self.down_proj(activation(up_BTF))
        gate_BTF = self.gate_proj(hidden_BTD)
        if limit is None:
            return self.down_proj(activation(gate_BTF) * up_BTF)
        gate_BTF, up_BTF = gate_BTF.clamp(max=limit), up_BTF.clamp(-limit, limit)
        return self.down_proj(gate_BTF * torch.sigmoid(self.config.swiglu_alpha * gate_BTF) * (up_BTF + 1))


class Experts(nn.Module):
    """Transform each position by the few feed-forwards that a router chooses for it (arXiv:1701.06538).

    Their outputs are weighted by the router's probabilities. Nothing here evens out how often each is chosen.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=config.router_bias)
        self.experts = nn.ModuleList(FeedForward(config, config.expert_size) for _ in range(config.num_experts))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the transformed positions [B, T, D]."""
        flat_PD = hidden_BTD.flatten(0, 1)  # P positions
        probabilities_PE = self.gate(flat_PD).float().softmax(-1)
        weights_PC, chosen_PC = probabilities_PE.topk(self.config.num_experts_per_tok)  # C chosen experts
        if self.config.norm_topk_prob:
            weights_PC = weights_PC / weights_PC.sum(-1, keepdim=True)
        summed_PD = torch.zeros_like(flat_PD)
        for number, expert in enumerate(self.experts):
            # One that no position chose computes nothing, and still has a gradient, which is zero.
            positions, places = (chosen_PC == number).nonzero(as_tuple=True)
            output_D = expert(flat_PD[positions]) * weights_PC[positions, places, None]
            summed_PD = summed_PD.index_add(0, positions, output_D.to(summed_PD))
        return summed_PD.view_as(hidden_BTD)


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
    device = next(model.parameters()).device
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

"""Attention: what each position of a text gathers from others, and the norms that stand around it.

Shapes are suffixes, as in model.py.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.config import ModelConfig
from edgelm_training.layers.view import Rotation


class Kept(UserDict[int, tuple[Tensor, Tensor]]):
    """Keys and values [B, K, T, H] by the number of their layer. Not a dict: of one, FSDP gives each block a copy."""


class RMSNorm(nn.RMSNorm):
    """Compute in the weight's precision: under autocast projections give a lower one, for which there is no kernel."""

    @property
    def factor(self) -> Tensor:
        """What a vector with a root mean square of one is multiplied by."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a root mean square of one over the last dimension, times the factor."""
        factor = self.factor
        return functional.rms_norm(x.to(factor.dtype), self.normalized_shape, factor, self.eps).to(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """Multiply by 1 + weight, so that weight decay pulls the factor to one instead of zero."""

    def reset_parameters(self) -> None:
        """Begin at a factor of one."""
        nn.init.zeros_(self.weight)

    @property
    def factor(self) -> Tensor:
        """What a vector with a root mean square of one is multiplied by."""
        return 1 + self.weight


class OffsetLayerNorm(nn.LayerNorm):
    """Multiply by 1 + weight."""

    def reset_parameters(self) -> None:
        """Begin at a factor of one."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a mean of zero and a variance of one over the last dimension, times the factor, plus bias."""
        return functional.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "rms": RMSNorm,
    "rms_offset": OffsetRMSNorm,
    "rms_plain": partial(nn.RMSNorm, elementwise_affine=False),
    "layer": nn.LayerNorm,
    "layer_offset": OffsetLayerNorm,
    "layer_no_bias": partial(nn.LayerNorm, bias=False),
    "layer_plain": partial(nn.LayerNorm, elementwise_affine=False),
}


_GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softplus": functional.softplus}


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """Return the config's norm of vectors of a size."""
    return NORMS[config.norm](size, eps=config.norm_eps)


def make_norm_of_heads(config: ModelConfig, heads: int, head_dim: int) -> nn.Module:
    """Return the norm of queries or keys."""
    if config.qk_norm_scope == "own_head":
        return OwnHeadNorm(config, heads, head_dim)
    size = heads * head_dim if config.qk_norm_scope == "projection" else head_dim
    return make_norm(config, size) if config.qk_norm_weights else NORMS["rms_plain"](size, eps=config.norm_eps)


def scores_of_distances(config: ModelConfig) -> nn.Embedding:
    """Return what each bucket of distances adds to the scores of each head (T5, arXiv:1910.10683, 2.1)."""
    return nn.Embedding(config.relative_attention_num_buckets, config.num_attention_heads)


class Distances(NamedTuple):
    """The bucket of each distance of a query and a key [T, T], and which keys a query sees; None: all."""

    buckets_TT: Tensor
    sees: Tensor | None

    def scores(self, by_bucket: nn.Module) -> Tensor:
        """Return what is added to the scores of each head [N, T, T] or [B, N, T, T]."""
        return unseen(by_bucket(self.buckets_TT).permute(2, 0, 1), self.sees)


def unseen(bias_NTT: Tensor, sees: Tensor | None) -> Tensor:
    """Let what is added to scores hide the keys that a query does not see."""
    return bias_NTT if sees is None else bias_NTT.masked_fill(~sees, -torch.inf)


class OwnHeadNorm(nn.Module):
    """Norm each head, and multiply it by weights of its own."""

    def __init__(self, config: ModelConfig, heads: int, head_dim: int) -> None:
        super().__init__()
        self.plain = NORMS["rms_plain" if config.norm == "rms" else "layer_plain"](head_dim, eps=config.norm_eps)
        self.weight = nn.Parameter(torch.ones(heads * head_dim))

    def forward(self, x_BNTH: Tensor) -> Tensor:
        """Return [B, N, T, H]."""
        weight_N1H = self.weight.unflatten(0, (x_BNTH.shape[1], 1, -1))
        return (self.plain(x_BNTH.to(weight_N1H.dtype)) * weight_N1H).to(x_BNTH.dtype)


class Attention(nn.Module):
    """Let each position look at itself and at those before it, with N query heads over K key-value heads.

    Without `causal`, it looks at those behind it too, or at the positions of another text, of `source_size`.

    K = N is multi-head attention (arXiv:1706.03762), K = 1 multi-query, in between grouped-query attention
    (arXiv:2305.13245): N/K neighbouring query heads share one key-value head, and the cache of a fast runtime shrinks
    by as much.
    """

    def __init__(
        self, config: ModelConfig, layer: int = 0, *, causal: bool = True, source_size: int | None = None
    ) -> None:
        super().__init__()
        D, H = config.hidden_size, config.head_size(layer)
        looked_at = source_size or D
        N, K = config.query_heads(layer), config.kv_heads(layer)
        self.config, self.layer, self.head_dim, self.causal = config, layer, H, causal
        self.keys_of = config.keys_of(layer)
        has_keys = self.keys_of == layer
        self.sinks = nn.Parameter(torch.zeros(N)) if config.attention_sinks else None
        self.q_proj = nn.Linear(D, N * H, bias=config.attention_bias)
        if has_keys:
            self.k_proj = nn.Linear(looked_at, K * H, bias=config.attention_bias)
        if has_keys and not config.keys_are_values(layer):
            self.v_proj = nn.Linear(looked_at, K * H, bias=config.attention_bias)
        self.o_proj = nn.Linear(N * H, D, bias=config.attention_output_bias)
        if config.attention_output_gate:
            gates = N if config.attention_gate_per_head else N * H
            self.gate_proj = nn.Linear(D, gates, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm = make_norm_of_heads(config, N, H)
        if config.qk_norm and has_keys:
            self.k_norm = make_norm_of_heads(config, K, H)
        # The values, and then what each head makes of them, pass through these, where hooks can see and change them.
        self.values, self.gathered = nn.Identity(), nn.Identity()
        self.attn_sub_norm = make_norm(config, N * H) if config.sub_norms else None

    def forward(
        self,
        hidden_BTD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        memory_BSD: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Return what each position gathers [B, T, D].

        rotation: cos and sin, each [T, R/2] or [B, T, R/2], and a factor [T] or [B, T]. mask: [T, T] or [B, 1, T, T],
        true where a query sees a key, or what is added to the scores; without it, a query sees every key, with `causal`
        every one that is not later. memory_BSD: the text that is looked at, where it is another one. kept: keys and
        values of earlier layers; this one's are put there, or found there where it has none of its own.
        """
        q_BNTH = self._heads(self.q_proj(hidden_BTD), "q_norm", rotation)
        if rotation is not None and rotation.query_factor is not None:
            q_BNTH = q_BNTH * rotation.query_factor[..., None, :, None].to(q_BNTH.dtype)
        kept = Kept() if kept is None else kept
        if self.keys_of == self.layer:
            kept[self.layer] = self._keys_and_values(hidden_BTD if memory_BSD is None else memory_BSD, rotation)
        k_BKTH, v_BKTH = kept[self.keys_of]
        scale, cap = self.config.attention_scale, self.config.attn_logit_softcapping
        values_BKTH = self.values(v_BKTH)
        mixed_BNTH = attend(q_BNTH, k_BKTH, values_BKTH, mask, scale, cap, self.sinks, causal=self.causal)
        mixed_BNTH = self.gathered(mixed_BNTH)
        if self.config.attention_output_gate:
            gate_BTG = _GATES[self.config.attention_gate_act](self.gate_proj(hidden_BTD))
            gate_BTNH = gate_BTG.unflatten(2, (mixed_BNTH.shape[1], -1))
            mixed_BNTH = mixed_BNTH * gate_BTNH.transpose(1, 2)
        mixed_BTD = mixed_BNTH.transpose(1, 2).flatten(2)
        output_BTD = self.o_proj(mixed_BTD if self.attn_sub_norm is None else self.attn_sub_norm(mixed_BTD))
        return scaled(output_BTD, self.config.multipliers.attention_out)

    def _keys_and_values(self, seen_BSD: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """Return keys, turned, and values [B, K, S, H]."""
        k_BSD = self.k_proj(seen_BSD)
        v_BSD = k_BSD if self.config.keys_are_values(self.layer) else self.v_proj(seen_BSD)
        v_BKSH = self._split_heads(v_BSD)
        if self.config.v_norm:
            v_BKSH = functional.rms_norm(v_BKSH, (self.head_dim,), eps=self.config.norm_eps)
        return self._heads(k_BSD, "k_norm", rotation), v_BKSH

    def _heads(self, projected: Tensor, norm: str, rotation: Rotation | None) -> Tensor:
        """Turn [B, T, heads * H] into heads [B, heads, T, H] that are normed, if the config says so, and turned.

        Each head is normed by itself, so that no score grows with the size of its vectors (arXiv:2302.05442), or all
        together.
        """
        scope = self.config.qk_norm_scope if self.config.qk_norm else None
        heads = self._split_heads(self.get_submodule(norm)(projected) if scope == "projection" else projected)
        heads = self.get_submodule(norm)(heads) if scope in ("head", "own_head") else heads
        heads = heads if rotation is None else rotate(heads, rotation.cos, rotation.sin)
        return self.get_submodule(norm)(heads) if scope == "turned_head" else heads

    def _split_heads(self, projected: Tensor) -> Tensor:
        """Turn [B, T, heads * H] into [B, heads, T, H]."""
        return projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


def attend(
    q_BNTH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mask: Tensor | None,
    scale: float,
    cap: float | None = None,
    sinks_N: Tensor | None = None,
    *,
    causal: bool = True,
) -> Tensor:
    """Return softmax(q kᵀ · scale, over the keys that the mask lets through, or plus the mask) v, [B, N, T, H].

    sinks_N: scores of one more key without a value, so that a head may look at nothing (arXiv:2309.17453, learned).
    """
    if cap is None and sinks_N is None:
        return functional.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=True
        )
    shared = q_BNTH.shape[1] // k_BKTH.shape[1]
    scores_BNTT = soft_cap(q_BNTH @ k_BKTH.repeat_interleave(shared, 1).mT * scale, cap)
    if mask is None and causal:
        mask = torch.ones_like(scores_BNTT[0, 0], dtype=torch.bool).tril()
    if mask is not None:
        is_bias = mask.is_floating_point()
        scores_BNTT = scores_BNTT + mask if is_bias else scores_BNTT.masked_fill(~mask, -torch.inf)
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

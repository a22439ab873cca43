"""Multi-head latent attention: what is kept of a token is one vector for all heads (DeepSeek-V2, arXiv:2405.04434).

It is written as attention of many query heads over one head whose keys are its values: each query is taken to where the
latent vectors are, and what it gathers of them is taken back. Source: 2.1 and appendix C there.
Shapes: B batch, T tokens, D hidden, N query heads, H = R + L: what turns of a token and its latent vector, P what does
not turn of a query, Y values of a head, Q rank of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgelm.architecture.layer_features import LATENT_NORM_EPS
from edgelm.config import ModelConfig
from edgelm_training.layers.attention import NORMS, Kept, attend, rotate, scaled
from edgelm_training.layers.view import Rotation


class LatentHead(nn.Module):
    """Take one head's queries to the latent vectors, and what they gather back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rank, values = config.kv_lora_rank or 0, config.v_head_dim or 0
        self.k_b_proj = nn.Linear(config.qk_nope_head_dim or 0, rank, bias=False)
        self.v_b_proj = nn.Linear(rank, values, bias=False)


class LatentAttention(nn.Module):
    """Let each position look at itself and at those before it, through one head of latent vectors."""

    def __init__(self, config: ModelConfig, layer: int = 0, *, causal: bool = True) -> None:
        super().__init__()
        assert causal  # no encoder has it
        D, N, L = config.hidden_size, config.num_attention_heads, config.kv_lora_rank or 0
        self.config, self.layer, self.nope = config, layer, config.qk_nope_head_dim or 0
        size, Q = N * (self.nope + config.rotary_dim), config.q_lora_rank
        if Q is None:
            self.q_proj = nn.Linear(D, size, bias=False)
        else:
            self.q_a_proj = nn.Linear(D, Q, bias=False)
            self.q_a_layernorm = NORMS[config.norm](Q, eps=LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(Q, size, bias=False)
        self.sinks = nn.Parameter(torch.zeros(N)) if config.attention_sinks else None
        self.kv_a_proj_with_mqa = nn.Linear(D, config.head_dim, bias=False)
        self.kv_a_layernorm = NORMS[config.norm](L, eps=LATENT_NORM_EPS)
        self.heads = nn.ModuleList(LatentHead(config) for _ in range(N))
        self.o_proj = nn.Linear(N * (config.v_head_dim or 0), D, bias=config.attention_output_bias)
        # The values, and then what each head makes of them, pass through these, where hooks can see and change them.
        self.values, self.gathered = nn.Identity(), nn.Identity()

    def forward(
        self,
        hidden_BTD: Tensor,
        rotation: Rotation | None,
        mask: Tensor | None,
        memory_BSD: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Return what each position gathers [B, T, D]; rotation and mask are as of `Attention.forward`."""
        config, R = self.config, self.config.rotary_dim
        if config.q_lora_rank is None:
            queries_BTX = self.q_proj(hidden_BTD)
        else:
            queries_BTX = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_BTD)))
        q_BTNX = queries_BTX.unflatten(2, (config.num_attention_heads, -1))
        nope_BTNP, turning_BTNR = q_BTNX.split([self.nope, R], dim=-1)
        latent_BTNL = _by_head(self.heads, "k_b_proj", nope_BTNP)
        q_BNTH = torch.cat((turning_BTNR, latent_BTNL), dim=-1).transpose(1, 2)
        latent_BTL, turning_BTR = self.kv_a_proj_with_mqa(hidden_BTD).split([config.kv_lora_rank or 0, R], dim=-1)
        k_B1TH = torch.cat((turning_BTR, self.kv_a_layernorm(latent_BTL)), dim=-1)[:, None]
        if rotation is not None:
            q_BNTH, k_B1TH = (rotate(heads, rotation.cos, rotation.sin) for heads in (q_BNTH, k_B1TH))
        scale, cap = config.attention_scale, config.attn_logit_softcapping
        values_B1TL = self.values(k_B1TH[..., R:])
        gathered_BNTL = self.gathered(attend(q_BNTH, k_B1TH, values_B1TL, mask, scale, cap, self.sinks))
        gathered_BTNY = _by_head(self.heads, "v_b_proj", gathered_BNTL.transpose(1, 2))
        return scaled(self.o_proj(gathered_BTNY.flatten(2)), config.multipliers.attention_out)


def _by_head(heads: nn.ModuleList, name: str, read_BTNX: Tensor) -> Tensor:
    """Project what each head reads by its own matrix."""
    pairs = zip(heads, read_BTNX.unbind(2), strict=True)
    projected = [head.get_submodule(name)(read_BTX) for head, read_BTX in pairs]
    return torch.stack(projected, 2)

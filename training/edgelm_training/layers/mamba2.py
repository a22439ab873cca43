"""Mamba2: what a layer has in the place of attention where a text is remembered in matrices that each token adds to.

Shapes are suffixes, as in model.py; G groups, N heads, X the size of a group's keys, Y that of a head, W channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.config import ModelConfig
from edgelm_training.layers.attention import scaled
from edgelm_training.layers.convolution import causal_sums
from edgelm_training.layers.linear_attention import read_of_matrices


class Mamba2(nn.Module):
    """Add each token to a matrix for each head, and read from it what the token's group asks for.

    The state space of Mamba 2 (arXiv:2405.21060) in the names of linear attention, which it is: a token's x is the
    value of a head, B and C are the key and the query of a group of heads, and its step dt says how much the matrix S
    [X, Y] forgets and how much is added: S = exp(dt A) S + B (dt x)ᵀ. The query reads Sᵀ C; D x goes past the matrix.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, self.G, self.N = config.hidden_size, config.linear_num_key_heads or 0, config.linear_num_value_heads or 0
        self.X, self.Y, W = config.linear_key_head_dim or 0, config.linear_value_head_dim or 0, config.linear_channels
        self.in_proj_z = nn.Linear(D, self.N * self.Y, bias=False)
        self.in_proj_xbc = nn.Linear(D, W, bias=False)
        self.in_proj_dt = nn.Linear(D, self.N, bias=False)
        self.conv1d = nn.Conv1d(W, W, config.linear_conv_kernel_dim or 0, groups=W)
        # A fresh head forgets within one to N tokens at a step of one.
        self.A_log = nn.Parameter(torch.arange(1.0, self.N + 1).log())
        self.D = nn.Parameter(torch.ones(self.N))
        self.dt_bias = nn.Parameter(torch.ones(self.N))
        self.norm = GroupedNorm(self.N * self.Y, self.G, config.norm_eps) if config.mamba_rms_norm else None
        self.multipliers = config.multipliers
        self.out_proj = nn.Linear(self.N * self.Y, D, bias=False)

    def forward(self, hidden_BTD: Tensor, positions: Tensor) -> Tensor:
        """Return what each position reads [B, T, D]; positions: of the tokens in their texts, [T] or [B, T]."""
        sizes, factors = [self.N * self.Y, self.G * self.X, self.G * self.X], self.multipliers
        projected_BTW = self.in_proj_xbc(hidden_BTD)
        if factors.ssm_xbc != (1, 1, 1):
            parts = zip(projected_BTW.split(sizes, -1), factors.ssm_xbc, strict=True)
            projected_BTW = torch.cat([scaled(part, factor) for part, factor in parts], -1)
        mixed_BTW = functional.silu(causal_sums(projected_BTW, self.conv1d, positions)).float()
        x_BTW, b_BTW, c_BTW = mixed_BTW.split(sizes, -1)
        k_BNTX, q_BNTX = (
            part.unflatten(-1, (self.G, self.X)).repeat_interleave(self.N // self.G, 2).transpose(1, 2)
            for part in (b_BTW, c_BTW)
        )
        x_BNTY = x_BTW.unflatten(-1, (self.N, self.Y)).transpose(1, 2)
        step_BTN = scaled(self.in_proj_dt(hidden_BTD).float(), factors.ssm_dt)
        step_BNT = functional.softplus(step_BTN + self.dt_bias).mT
        log_decay_BNT = -self.A_log.float().exp()[:, None] * step_BNT
        read_BNTY = read_of_matrices(q_BNTX, k_BNTX, step_BNT[..., None] * x_BNTY, log_decay_BNT, positions)
        read_BTW = (read_BNTY + self.D[:, None, None] * x_BNTY).transpose(1, 2).flatten(2)
        gate_BTW = scaled(self.in_proj_z(hidden_BTD).float(), factors.ssm_z)
        gated_BTW = read_BTW * functional.silu(gate_BTW)
        normed_BTW = gated_BTW if self.norm is None else self.norm(gated_BTW)
        return scaled(self.out_proj(normed_BTW.to(hidden_BTD.dtype)), factors.ssm_out)


class GroupedNorm(nn.Module):
    """Divide the channels of each group by their root mean square."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Return [B, T, W]."""
        grouped = x_BTW.unflatten(-1, (self.groups, -1))
        return self.weight * functional.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(2)

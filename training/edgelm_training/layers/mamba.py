"""Mamba: what a layer has in the place of attention where each channel remembers a text in a few numbers.

Shapes are suffixes, as in model.py; N channels, X the size of a channel's state, R how many numbers make all steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.config import ModelConfig
from edgelm_training.layers.attention import make_norm
from edgelm_training.layers.convolution import causal_sums


class Mamba(nn.Module):
    """Add each token to a vector S [X] for each channel, and read from it what the token asks for.

    The selective state space of Mamba (arXiv:2312.00752): a channel's own step dt says how much of each number of its
    vector is forgotten and how much of its x is added: S = exp(dt A) S + dt x B. The token reads S · C; D x goes past
    the vector. B, C and the steps are made of x behind its convolution, and normed first in Jamba (arXiv:2403.19887).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, N = config.hidden_size, config.linear_channels
        self.R, self.X = config.mamba_dt_rank or 0, config.linear_key_head_dim or 0
        self.in_proj_x = nn.Linear(D, N, bias=False)
        self.in_proj_z = nn.Linear(D, N, bias=False)
        self.conv1d = nn.Conv1d(N, N, config.linear_conv_kernel_dim or 0, groups=N)
        self.x_proj = nn.Linear(N, self.R + 2 * self.X, bias=False)
        self.normed = config.mamba_rms_norm
        if self.normed:
            self.dt_layernorm = make_norm(config, self.R)
            self.b_layernorm = make_norm(config, self.X)
            self.c_layernorm = make_norm(config, self.X)
        self.dt_proj = nn.Linear(self.R, N, bias=False)
        # The numbers of a fresh channel are forgotten within one to X tokens at a step of one.
        self.A_log = nn.Parameter(torch.arange(1.0, self.X + 1).log().repeat(N, 1))
        self.D = nn.Parameter(torch.ones(N))
        self.dt_bias = nn.Parameter(torch.full((N,), -4.6))  # a fresh channel's step is a hundredth
        self.out_proj = nn.Linear(N, D, bias=False)

    def forward(self, hidden_BTD: Tensor, positions: Tensor) -> Tensor:
        """Return what each position reads [B, T, D]; positions: of the tokens in their texts, [T] or [B, T]."""
        x_BTN = functional.silu(causal_sums(self.in_proj_x(hidden_BTD), self.conv1d, positions))
        dt_BTR, b_BTX, c_BTX = self.x_proj(x_BTN).split([self.R, self.X, self.X], -1)
        if self.normed:
            dt_BTR, b_BTX, c_BTX = self.dt_layernorm(dt_BTR), self.b_layernorm(b_BTX), self.c_layernorm(c_BTX)
        step_BTN = functional.softplus(self.dt_proj(dt_BTR).float() + self.dt_bias)
        read_BTN = self._read(step_BTN, step_BTN * x_BTN.float(), b_BTX.float(), c_BTX.float(), positions)
        gated_BTN = (read_BTN + self.D * x_BTN) * functional.silu(self.in_proj_z(hidden_BTD).float())
        return self.out_proj(gated_BTN.to(hidden_BTD.dtype))

    def _read(self, step_BTN: Tensor, written_BTN: Tensor, b_BTX: Tensor, c_BTX: Tensor, positions: Tensor) -> Tensor:
        """Return what is read of the vectors, token by token: each number of them has a decay of its own, for which
        there is no product of matrices that would do a chunk at once.
        """
        rates_NX = -self.A_log.float().exp()
        goes_on_BT = (positions > 0).float().expand(step_BTN.shape[:2])
        state_BNX, read = torch.zeros_like(rates_NX), []
        for t in range(step_BTN.shape[1]):
            decay_BNX = torch.exp(step_BTN[:, t, :, None] * rates_NX) * goes_on_BT[:, t, None, None]
            state_BNX = decay_BNX * state_BNX + written_BTN[:, t, :, None] * b_BTX[:, t, None]
            read.append((state_BNX * c_BTX[:, t, None]).sum(-1))
        return torch.stack(read, 1)

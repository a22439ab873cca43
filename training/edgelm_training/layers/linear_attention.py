"""LinearAttention: what a layer has in the place of attention where a text is remembered in matrices of fixed size.

Shapes are suffixes, as in model.py; G key heads, N value heads, X and Y their dimensions, W channels, C tokens of a
chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgelm.config import ModelConfig
from edgelm_training.layers.attention import RMSNorm, scaled
from edgelm_training.layers.convolution import causal_sums

_CHUNK = 64  # tokens whose writes are found together: a triangular system of this size for each head
_L2_EPSILON = 1e-6


class LinearAttention(nn.Module):
    """Write each token into a matrix for each value head, and read from it what a query asks for.

    Gated DeltaNet (arXiv:2412.06464): a token first lets the matrix S [X, Y] decay, then replaces what is written under
    its key k by its value v, as far as its rate b goes, which is up to one, or two: S = a S, then
    S = S + b k (v - Sᵀ k)ᵀ; the query reads Sᵀ q. What a runtime keeps of a text does not grow with it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, self.G, self.N = config.hidden_size, config.linear_num_key_heads or 0, config.linear_num_value_heads or 0
        self.X, self.Y, W = config.linear_key_head_dim or 0, config.linear_value_head_dim or 0, config.linear_channels
        self.in_proj_qkv = nn.Linear(D, W, bias=False)
        self.in_proj_z = nn.Linear(D, self.N * self.Y, bias=False)
        self.in_proj_b = nn.Linear(D, self.N, bias=False)
        self.in_proj_a = nn.Linear(D, self.N, bias=False)
        self.conv1d = nn.Conv1d(W, W, config.linear_conv_kernel_dim or 0, groups=W, bias=False)
        # A fresh head forgets within one to sixteen tokens at a step of one.
        self.A_log = nn.Parameter(torch.empty(self.N).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(torch.ones(self.N))
        self.norm = RMSNorm(self.Y, eps=config.norm_eps if config.linear_norm_eps is None else config.linear_norm_eps)
        self.largest_rate = 2.0 if config.linear_allow_neg_eigval else 1.0
        self.out_proj = nn.Linear(self.N * self.Y, D, bias=False)

    def forward(self, hidden_BTD: Tensor, positions: Tensor) -> Tensor:
        """Return what each position reads [B, T, D]; positions: of the tokens in their texts, [T] or [B, T]."""
        mixed_BTW = functional.silu(causal_sums(self.in_proj_qkv(hidden_BTD), self.conv1d, positions))
        key_size, value_size = self.G * self.X, self.N * self.Y
        q_BTW, k_BTW, v_BTW = mixed_BTW.float().split([key_size, key_size, value_size], -1)
        q_BNTX, k_BNTX = (
            _normed(x.unflatten(-1, (self.G, self.X))).repeat_interleave(self.N // self.G, 2).transpose(1, 2)
            for x in (q_BTW, k_BTW)
        )
        v_BNTY = v_BTW.unflatten(-1, (self.N, self.Y)).transpose(1, 2)
        rate_BNT = scaled(torch.sigmoid(self.in_proj_b(hidden_BTD).float()).mT, self.largest_rate)
        step_BTN = functional.softplus(self.in_proj_a(hidden_BTD).float() + self.dt_bias)
        log_decay_BNT = (-self.A_log.float().exp() * step_BTN).mT
        read_BNTY = read_of_matrices(q_BNTX * self.X**-0.5, k_BNTX, v_BNTY, log_decay_BNT, positions, rate_BNT)
        gate_BTNY = self.in_proj_z(hidden_BTD).unflatten(-1, (self.N, self.Y))
        read_BTNY = self.norm(read_BNTY.transpose(1, 2)) * functional.silu(gate_BTNY.float())
        return self.out_proj(read_BTNY.flatten(2).to(hidden_BTD.dtype))


def _normed(x: Tensor) -> Tensor:
    """Return vectors of length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _L2_EPSILON)


def read_of_matrices(
    q_BNTX: Tensor,
    k_BNTX: Tensor,
    v_BNTY: Tensor,
    log_decay_BNT: Tensor,
    positions: Tensor,
    rate_BNT: Tensor | None = None,
) -> Tensor:
    """Return what the queries read of matrices that begin as zeros with each text, [B, N, T, Y].

    Without a rate, a token adds k vᵀ to a matrix, whatever is there. With one, what it writes depends on what those
    before it wrote, which within a chunk is a triangular system of equations (arXiv:2406.06484, 3); what comes from
    earlier chunks is in the matrices.
    """
    B, N, T, _ = q_BNTX.shape
    state_BNXY = q_BNTX.new_zeros(B, N, k_BNTX.shape[-1], v_BNTY.shape[-1])
    positions_BT = positions.expand(B, T)
    read = []
    for start in range(0, T, _CHUNK):
        q_BNCX, k_BNCX, v_BNCY = (x[:, :, start : start + _CHUNK] for x in (q_BNTX, k_BNTX, v_BNTY))
        log_decay_BNC = log_decay_BNT[:, :, start : start + _CHUNK]
        # Which tokens of the chunk are of one text, and which are of the text that the chunk before ended with.
        back_BC = positions_BT[:, None, start : start + _CHUNK]
        places_C = torch.arange(back_BC.shape[-1], device=back_BC.device)
        distances_CC = places_C[:, None] - places_C
        sees_BNCC = (distances_CC >= 0) & (distances_CC <= back_BC[..., None])
        goes_on_BNC = back_BC > places_C
        # Summed from each token on: differences of sums from the chunk's start would keep few digits.
        between_BNCC = log_decay_BNC[..., None].masked_fill(distances_CC <= 0, 0).cumsum(-2)
        decay_BNCC = between_BNCC.masked_fill(~sees_BNCC, -torch.inf).exp()
        from_before_BNC1 = log_decay_BNC.cumsum(-1).masked_fill(~goes_on_BNC, -torch.inf).exp()[..., None]
        written_BNCY = v_BNCY
        if rate_BNT is not None:
            rate_BNC1 = rate_BNT[:, :, start : start + _CHUNK, None]
            system_BNCC = rate_BNC1 * decay_BNCC * (k_BNCX @ k_BNCX.mT)
            wanted_BNCY = rate_BNC1 * (v_BNCY - from_before_BNC1 * (k_BNCX @ state_BNXY))
            written_BNCY = torch.linalg.solve_triangular(system_BNCC, wanted_BNCY, upper=False, unitriangular=True)
        own_BNCY = (decay_BNCC * (q_BNCX @ k_BNCX.mT)) @ written_BNCY
        read.append(from_before_BNC1 * (q_BNCX @ state_BNXY) + own_BNCY)
        to_end_BNC1 = decay_BNCC[..., -1, :, None]
        state_BNXY = from_before_BNC1[..., -1:, :] * state_BNXY + (to_end_BNC1 * k_BNCX).mT @ written_BNCY
    return torch.cat(read, 2)

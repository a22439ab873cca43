"""What some layers have in the place of attention, in plain numpy: parts of the model beside it.

Shapes: T tokens, C of a block, D hidden, W channels, L tokens that a convolution sees, G key heads, N value heads, X
and Y their dimensions; of Mamba, N channels, and R numbers of which their steps are made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.config import ModelConfig
from edgelm_export.reference.activations import silu
from edgelm_export.reference.weights import Array, Weights, linear, norm, over_rms, rows_of_sequences

_LINEAR_BLOCK = 64
_L2_EPSILON = 1e-6


def linear_attention(config: ModelConfig, weights: Weights, hidden_TD: Array, lengths: Sequence[int]) -> Array:
    """Write each token into a matrix for each value head, and read from it what a query asks for."""
    G, N = config.linear_num_key_heads or 0, config.linear_num_value_heads or 0
    X, Y = config.linear_key_head_dim or 0, config.linear_value_head_dim or 0
    projected_TW = linear(weights, "linear_attn.in_proj_qkv", hidden_TD)
    mixed_TW = silu(causal_sums(projected_TW, weights["linear_attn.conv1d.weight"], lengths))
    q_TW, k_TW, v_TW = np.split(mixed_TW, [G * X, 2 * G * X], axis=-1)
    q_TNX, k_TNX = (np.repeat(_unit(x.reshape(-1, G, X)), N // G, axis=1) for x in (q_TW, k_TW))
    v_TNY = v_TW.reshape(-1, N, Y)
    largest = np.float32(2 if config.linear_allow_neg_eigval else 1)
    rates_TN = np.asarray(largest / (1 + np.exp(-linear(weights, "linear_attn.in_proj_b", hidden_TD))), np.float32)
    steps_TN = np.logaddexp(0, linear(weights, "linear_attn.in_proj_a", hidden_TD) + weights["linear_attn.dt_bias"])
    log_decays_TN: Array = -np.exp(weights["linear_attn.A_log"]) * steps_TN
    read_TNY = np.empty_like(v_TNY)
    for own in rows_of_sequences(lengths):
        read_TNY[own] = _read_of_matrices(q_TNX[own], k_TNX[own], v_TNY[own], log_decays_TN[own], rates_TN[own])
    epsilon = config.norm_eps if config.linear_norm_eps is None else config.linear_norm_eps
    normed_TNY = over_rms(read_TNY * np.float32(X**-0.5), epsilon)
    read_TW = (normed_TNY * weights["linear_attn.norm.weight"]).reshape(-1, N * Y)
    gate_TW = silu(linear(weights, "linear_attn.in_proj_z", hidden_TD))
    return linear(weights, "linear_attn.out_proj", read_TW * gate_TW)


def mamba(config: ModelConfig, weights: Weights, hidden_TD: Array, lengths: Sequence[int]) -> Array:
    """Add each token to a vector for each channel, and read from it what the token asks for."""
    R, X = config.mamba_dt_rank or 0, config.linear_key_head_dim or 0
    projected_TN = linear(weights, "mamba.in_proj_x", hidden_TD)
    summed_TN = causal_sums(projected_TN, weights["mamba.conv1d.weight"], lengths)
    x_TN = silu(summed_TN + weights["mamba.conv1d.bias"])
    parts = dict(zip(("dt", "b", "c"), np.split(linear(weights, "mamba.x_proj", x_TN), [R, R + X], -1), strict=True))
    if config.mamba_rms_norm:
        parts = {name: norm(config, weights, f"mamba.{name}_layernorm.", part) for name, part in parts.items()}
    steps_TN = np.logaddexp(0, linear(weights, "mamba.dt_proj", parts["dt"]) + weights["mamba.dt_bias"])
    rates_NX, written_TN = -np.exp(weights["mamba.A_log"]), steps_TN * x_TN
    read_TN = np.empty_like(x_TN)
    for own in rows_of_sequences(lengths):
        state_NX = np.zeros_like(rates_NX)
        for t in range(own.start, own.stop):
            state_NX = np.exp(steps_TN[t, :, None] * rates_NX) * state_NX + written_TN[t, :, None] * parts["b"][t]
            read_TN[t] = state_NX @ parts["c"][t]
    gate_TN = silu(linear(weights, "mamba.in_proj_z", hidden_TD))
    return linear(weights, "mamba.out_proj", (read_TN + weights["mamba.D"] * x_TN) * gate_TN)


def mamba2(config: ModelConfig, weights: Weights, hidden_TD: Array, lengths: Sequence[int]) -> Array:
    """Add each token to a matrix for each head, and read from it what the token's group asks for."""
    G, N = config.linear_num_key_heads or 0, config.linear_num_value_heads or 0
    X, Y = config.linear_key_head_dim or 0, config.linear_value_head_dim or 0
    factors = config.multipliers
    factors_W = np.repeat(np.array(factors.ssm_xbc, np.float32), (N * Y, G * X, G * X))
    projected_TW = linear(weights, "mamba.in_proj_xbc", hidden_TD) * factors_W
    summed_TW = causal_sums(projected_TW, weights["mamba.conv1d.weight"], lengths)
    mixed_TW = silu(summed_TW + weights["mamba.conv1d.bias"])
    x_TW, b_TW, c_TW = np.split(mixed_TW, [N * Y, N * Y + G * X], axis=-1)
    x_TNY = x_TW.reshape(-1, N, Y)
    k_TNX, q_TNX = (np.repeat(part.reshape(-1, G, X), N // G, axis=1) for part in (b_TW, c_TW))
    projected_TN = linear(weights, "mamba.in_proj_dt", hidden_TD) * np.float32(factors.ssm_dt)
    steps_TN = np.logaddexp(0, projected_TN + weights["mamba.dt_bias"])
    log_decays_TN: Array = -np.exp(weights["mamba.A_log"]) * steps_TN
    v_TNY, read_TNY = steps_TN[..., None] * x_TNY, np.empty_like(x_TNY)
    for own in rows_of_sequences(lengths):
        read_TNY[own] = _read_of_matrices(q_TNX[own], k_TNX[own], v_TNY[own], log_decays_TN[own])
    read_TW = (read_TNY + weights["mamba.D"][:, None] * x_TNY).reshape(-1, N * Y)
    gated_TW = read_TW * silu(linear(weights, "mamba.in_proj_z", hidden_TD) * np.float32(factors.ssm_z))
    if config.mamba_rms_norm:
        normed_TGC = over_rms(gated_TW.reshape(-1, G, N // G * Y), config.norm_eps)
        gated_TW = normed_TGC.reshape(-1, N * Y) * weights["mamba.norm.weight"]
    return linear(weights, "mamba.out_proj", gated_TW) * np.float32(factors.ssm_out)


def _read_of_matrices(
    q_TNX: Array, k_TNX: Array, v_TNY: Array, log_decays_TN: Array, rates_TN: Array | None = None
) -> Array:
    """Return what the queries of one sequence read [T, N, Y] of matrices that begin as zeros.

    Token by token a matrix S [X, Y] becomes a S, and then S + k vᵀ; or with a rate, S + b k (v - Sᵀ k)ᵀ: what the
    tokens of a block add is then found together, as each depends on those before it, in a system of equations.
    """
    T, N, X = q_TNX.shape
    state_NXY = np.zeros((N, X, v_TNY.shape[-1]), np.float32)
    read_TNY = np.empty_like(v_TNY)
    for start in range(0, T, _LINEAR_BLOCK):
        block = slice(start, start + _LINEAR_BLOCK)
        q_NCX, k_NCX, v_NCY = (x[block].swapaxes(0, 1) for x in (q_TNX, k_TNX, v_TNY))
        logs_NC1 = log_decays_TN[block].T[..., None]
        lower_CC = np.tri(q_NCX.shape[1], dtype=bool)
        since_NCC = np.exp(np.cumsum(np.where(np.tril(lower_CC, -1), logs_NC1, 0), axis=1)) * lower_CC
        since_start_NC1 = np.exp(np.cumsum(logs_NC1, axis=1))
        added_NCY = v_NCY
        if rates_TN is not None:
            rates_NC1 = rates_TN[block].T[..., None]
            system_NCC = np.tril(rates_NC1 * since_NCC * (k_NCX @ k_NCX.swapaxes(1, 2)), -1) + np.eye(len(lower_CC))
            wanted_NCY = rates_NC1 * (v_NCY - since_start_NC1 * (k_NCX @ state_NXY))
            added_NCY = np.linalg.solve(system_NCC.astype(np.float32), wanted_NCY)
        own_NCY = (since_NCC * (q_NCX @ k_NCX.swapaxes(1, 2))) @ added_NCY
        read_TNY[block] = (since_start_NC1 * (q_NCX @ state_NXY) + own_NCY).swapaxes(0, 1)
        kept_NCX = since_NCC[:, -1, :, None] * k_NCX
        state_NXY = since_start_NC1[:, -1:] * state_NXY + kept_NCX.swapaxes(1, 2) @ added_NCY
    return read_TNY


def _unit(x: Array) -> Array:
    return np.asarray(x / np.sqrt(np.square(x).sum(-1, keepdims=True) + np.float32(_L2_EPSILON)))


def short_convolution(config: ModelConfig, weights: Weights, hidden_TD: Array, lengths: Sequence[int]) -> Array:
    """Sum each channel over a token and those before it in its sequence, between two gates."""
    opening_TD, closing_TD, value_TD = np.split(linear(weights, "conv.in_proj", hidden_TD), 3, axis=-1)
    summed_TD = causal_sums(opening_TD * value_TD, weights["conv.conv.weight"], lengths)
    if config.conv_bias:
        summed_TD += weights["conv.conv.bias"]
    return linear(weights, "conv.out_proj", closing_TD * summed_TD)


def causal_sums(x_TW: Array, weight_W1L: Array, lengths: Sequence[int]) -> Array:
    """Sum each channel over a token and those before it in its sequence."""
    summed_TW, before = np.empty_like(x_TW), weight_W1L.shape[2] - 1
    for own in rows_of_sequences(lengths):
        padded_TW, length = np.pad(x_TW[own], ((before, 0), (0, 0))), own.stop - own.start
        summed_TW[own] = sum(padded_TW[i : i + length] * weight_W1L[:, 0, i] for i in range(before + 1))
    return summed_TW

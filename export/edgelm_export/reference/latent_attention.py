"""Multi-head latent attention in plain numpy: a part of the model beside it (arXiv:2405.04434, 2.1).

Shapes: T tokens, D hidden, N query heads, H = R + L: what turns of a token and its latent vector, P what does not turn
of a query, Y values of a head.
"""

from __future__ import annotations

import numpy as np

from edgelm.architecture.layer_features import LATENT_NORM_EPS
from edgelm.config import ModelConfig
from edgelm_export.reference.weights import Array, Weights, linear, norm


def latent_queries(config: ModelConfig, weights: Weights, hidden_TD: Array) -> Array:
    """Return the queries, each taken to where the latent vectors are, before they turn: [T, N * H]."""
    if config.q_lora_rank is None:
        projected_TX = linear(weights, "self_attn.q_proj", hidden_TD)
    else:
        small_TQ = linear(weights, "self_attn.q_a_proj", hidden_TD)
        normed_TQ = norm(config, weights, "self_attn.q_a_layernorm.", small_TQ, LATENT_NORM_EPS)
        projected_TX = linear(weights, "self_attn.q_b_proj", normed_TQ)
    P, q_TNX = config.qk_nope_head_dim or 0, projected_TX.reshape(len(hidden_TD), config.num_attention_heads, -1)
    heads = [
        np.concatenate([q_TX[:, P:], linear(weights, f"self_attn.heads.{head}.k_b_proj", q_TX[:, :P])], axis=1)
        for head, q_TX in enumerate(q_TNX.swapaxes(0, 1))
    ]
    return np.concatenate(heads, axis=1)


def latent_keys(config: ModelConfig, weights: Weights, hidden_TD: Array) -> Array:
    """Return what is kept of the tokens, before it turns: [T, H]."""
    projected_TH = linear(weights, "self_attn.kv_a_proj_with_mqa", hidden_TD)
    latent_TL, turning_TR = np.split(projected_TH, [config.kv_lora_rank or 0], axis=1)
    normed_TL = norm(config, weights, "self_attn.kv_a_layernorm.", latent_TL, LATENT_NORM_EPS)
    return np.concatenate([turning_TR, normed_TL], axis=1)


def latent_values(config: ModelConfig, weights: Weights, gathered_TX: Array) -> Array:
    """Return what the heads gathered of the latent vectors [T, N * H], taken back: [T, N * Y]."""
    gathered_NTH = gathered_TX.reshape(len(gathered_TX), -1, config.head_dim).swapaxes(0, 1)
    values = [
        linear(weights, f"self_attn.heads.{head}.v_b_proj", gathered_TH[:, config.rotary_dim :])
        for head, gathered_TH in enumerate(gathered_NTH)
    ]
    return np.concatenate(values, axis=1)

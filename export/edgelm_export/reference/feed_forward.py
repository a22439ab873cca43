"""Feed-forwards, and experts and who chooses among them, in plain numpy: parts of the model beside it.

Shapes: T tokens, D hidden, F intermediate, E experts, G groups of them.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from edgelm.config import SPARSEMIXER_MARGIN, ModelConfig
from edgelm_export.reference.activations import ACTIVATIONS, silu, xielu
from edgelm_export.reference.weights import Array, Weights, linear, norm


def feed_forward(
    config: ModelConfig, weights: Weights, hidden_TD: Array, name: str, cutoff: float | None = None
) -> Array:
    """Widen each position [T, D] to [T, F], and bring it back. cutoff: of gates that are thinned."""

    def projected(x_TF: Array) -> Array:
        x_TF = norm(config, weights, f"{name}.ffn_sub_norm.", x_TF) if config.sub_norms else x_TF
        return linear(weights, f"{name}.down_proj", x_TF) * np.float32(config.multipliers.mlp_down)

    own, limit = {"xielu": partial(xielu, weights, name)}, config.swiglu_limit  # one that has weights
    activation = own[config.hidden_act] if config.hidden_act in own else ACTIVATIONS[config.hidden_act]
    up_TF = linear(weights, f"{name}.up_proj", hidden_TD)
    if not config.mlp_gated:
        return projected(activation(up_TF))
    gate_TF = linear(weights, f"{name}.gate_proj", hidden_TD) * np.float32(config.multipliers.mlp_gate)
    gate_TF = gate_TF if cutoff is None else _thinned(gate_TF, cutoff)
    if limit is not None:
        alpha = np.float32(config.swiglu_alpha)
        gate_TF, up_TF = np.minimum(gate_TF, np.float32(limit)), np.clip(up_TF, -np.float32(limit), np.float32(limit))
        return projected(silu(alpha * gate_TF) / alpha * (up_TF + 1))
    return projected(activation(gate_TF) * up_TF)


def _thinned(gate_TF: Array, cutoff: float) -> Array:
    """Return by how much each gate is above their mean and `cutoff` standard deviations, or nothing."""
    mean_T1, deviation_T1 = gate_TF.mean(-1, keepdims=True), gate_TF.std(-1, keepdims=True)
    return np.asarray(np.maximum(gate_TF - (mean_T1 + np.float32(cutoff) * deviation_T1), 0))


def experts(config: ModelConfig, weights: Weights, hidden_TD: Array, stream_TD: Array) -> Array:
    """Sum the feed-forwards of the experts that each position's router chooses, weighted by what it gives them.

    stream_TD: what hidden_TD is the norm of.
    """

    def own_normed(name: str, x_TD: Array) -> Array:
        return norm(config, weights, f"mlp.{name}.", x_TD) if config.expert_norms else x_TD

    stream_TD = stream_TD if config.expert_norms else hidden_TD
    read_TD = own_normed("experts_norm", stream_TD)
    shares_TE = _shares(config, weights, own_normed("router_norm", stream_TD))
    summed_TD = np.zeros_like(hidden_TD)
    for expert in range(config.num_experts):
        rows = np.flatnonzero(shares_TE[:, expert])
        output_TD = feed_forward(config, weights, read_TD[rows], f"mlp.experts.{expert}")
        summed_TD[rows] += shares_TE[rows, expert, None] * output_TD
    summed_TD = own_normed("post_experts_norm", summed_TD)
    if config.shared_expert_intermediate_size:
        shared_TD = feed_forward(config, weights, hidden_TD, "mlp.shared_experts")
        if config.shared_expert_gate:
            shared_TD = shared_TD / (1 + np.exp(-hidden_TD @ weights["mlp.shared_expert_gate.weight"].T))
        summed_TD = summed_TD + own_normed("post_shared_experts_norm", shared_TD)
    return summed_TD


def _shares(config: ModelConfig, weights: Weights, read_TD: Array) -> Array:
    """Return what a router gives each expert [T, E]: nothing to those that it does not choose."""
    logits_TE = read_TD @ weights["mlp.gate.weight"].T
    if config.router_bias:
        logits_TE = logits_TE + weights["mlp.gate.bias"]
    if config.expert_norms:
        logits_TE = logits_TE * np.float32(config.hidden_size**-0.5)
    if config.scoring_func == "sigmoid":
        shares_TE = 1 / (1 + np.exp(-logits_TE))
    elif config.scoring_func == "sparsemixer":
        shares_TE = _sparsemixer(logits_TE, config.num_experts_per_tok)
    else:
        shares_TE = np.exp(logits_TE - logits_TE.max(-1, keepdims=True))
        shares_TE /= shares_TE.sum(-1, keepdims=True)
    bias_E = weights["mlp.gate.e_score_correction_bias"] if config.expert_choice_bias else np.float32(0)
    preferred_TE = _within_groups(shares_TE + bias_E, config.n_group, config.topk_group)
    order_TE = np.argsort(-preferred_TE, axis=-1, kind="stable")
    np.put_along_axis(shares_TE, order_TE[:, config.num_experts_per_tok :], 0, axis=-1)
    if config.norm_topk_prob:
        shares_TE /= shares_TE.sum(-1, keepdims=True)
    shares_TE *= np.float32(config.routed_scaling_factor)
    if config.expert_scales:
        shares_TE *= weights["mlp.gate.per_expert_scale"]
    return np.asarray(shares_TE)


def _sparsemixer(logits_TE: Array, count: int) -> Array:
    """Return the share that each of the `count` best experts has among those that are left and close to it."""
    shares_TE, left_TE = np.zeros_like(logits_TE), logits_TE.copy()
    for _ in range(count):
        chosen_T1 = left_TE.argmax(-1, keepdims=True)
        best_T1 = np.take_along_axis(left_TE, chosen_T1, -1)
        is_far_TE = (best_T1 - logits_TE) / np.maximum(np.abs(logits_TE), best_T1) > SPARSEMIXER_MARGIN
        close_TE = np.exp(np.where(is_far_TE, -np.inf, left_TE) - best_T1)
        np.put_along_axis(shares_TE, chosen_T1, 1 / close_TE.sum(-1, keepdims=True), -1)
        np.put_along_axis(left_TE, chosen_T1, -np.inf, -1)
    return shares_TE


def _within_groups(preferred_TE: Array, n_group: int, topk_group: int) -> Array:
    """Return the scores that experts are chosen by, with no chance for those outside the chosen groups."""
    if n_group == 1:
        return preferred_TE
    by_group_TGE = preferred_TE.reshape(len(preferred_TE), n_group, -1)
    best_TG = np.sort(by_group_TGE, axis=-1)[..., -2:].sum(-1)
    lost_TG = np.argsort(-best_TG, axis=-1, kind="stable")[:, topk_group:]
    kept_TGE = by_group_TGE.copy()
    np.put_along_axis(kept_TGE, lost_TG[..., None], -np.inf, axis=1)
    return kept_TGE.reshape(preferred_TE.shape)

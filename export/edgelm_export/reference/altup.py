"""AltUp and LAuReL in plain numpy: parts of the model beside it.

Shapes: T tokens, A residual streams, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.architecture.layer_features import LEAST_POWER
from edgelm.config import ModelConfig
from edgelm_export.reference.weights import Array, Weights, linear, norm


def spread(hidden_TD: Array, projections: Sequence[Array]) -> Array:
    """Make the streams [T, A * D] of what is embedded: itself, and projections of it of the same power."""
    return np.concatenate([hidden_TD, *(_of_power(hidden_TD @ each.T, hidden_TD) for each in projections)], axis=1)


def merged(streams_TAD: Array, projections: Sequence[Array]) -> Array:
    """Make one stream [T, D] of all: the mean of the first, and projections of the others of the same power."""
    first_TD, *others = streams_TAD.swapaxes(0, 1)
    projected = (_of_power(x_TD @ each.T, first_TD) for x_TD, each in zip(others, projections, strict=True))
    return np.asarray(np.mean([first_TD, *projected], axis=0), np.float32)


def _of_power(x_TD: Array, as_of_TD: Array) -> Array:
    wanted_T1, own_T1 = (np.square(each).mean(-1, keepdims=True) for each in (as_of_TD, x_TD))
    return np.asarray(x_TD * (np.sqrt(wanted_T1) / np.sqrt(np.maximum(own_T1, np.float32(LEAST_POWER)))))


def predicted(config: ModelConfig, weights: Weights, streams_TAD: Array) -> Array:
    """Return the streams [T, A, D] as a layer expects them behind itself."""
    A = config.altup_num_inputs
    shares_TAA = _routed(config, weights, streams_TAD[:, 0]) @ weights["altup.prediction_coefs.weight"].T
    return np.asarray(shares_TAA.reshape(-1, A, A) @ streams_TAD + streams_TAD)


def corrected(config: ModelConfig, weights: Weights, predicted_TAD: Array, made_TD: Array) -> tuple[Array, Array]:
    """Return the streams [T, A, D] with what their first lacks of what a layer made, and what gates its features."""
    shares_TA = 1 + _routed(config, weights, made_TD) @ weights["altup.correction_coefs.weight"].T
    streams_TAD = shares_TA[..., None] * (made_TD - predicted_TAD[:, 0])[:, None] + predicted_TAD
    scale_D = weights["altup.correct_output_scale"] if config.altup_correct_scale else np.float32(1)
    return streams_TAD, np.asarray(streams_TAD[:, 0] * scale_D)


def _routed(config: ModelConfig, weights: Weights, hidden_TD: Array) -> Array:
    """Return what of a token decides the shares, [T, A]: never on a grid, as no router is."""
    normed_TD = norm(config, weights, "altup.router_norm.", hidden_TD)
    return np.asarray(np.tanh(normed_TD @ weights["altup.modality_router.weight"].T / np.float32(config.hidden_size)))


def with_laurel(config: ModelConfig, weights: Weights, attended_TD: Array, input_TD: Array) -> Array:
    """Return both ways over the root of two: what attention left, and what goes beside it of what it read."""
    thin_TD = linear(weights, "laurel.linear_right", linear(weights, "laurel.linear_left", input_TD))
    beside_TD = input_TD + norm(config, weights, "laurel.post_laurel_norm.", thin_TD)
    return np.asarray((attended_TD + beside_TD) * np.float32(0.5**0.5))

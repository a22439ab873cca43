"""Activations, norms and groups of experts in plain numpy: parts of reference.py. Shapes: any."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgelm.config import XIELU_BETA

Array = NDArray[np.float32]
Weights = Mapping[str, Array]


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp(-x) is inf for a very negative x, and x / inf the right 0
        return np.asarray(x / (1 + np.exp(-x)))


def over_rms(x: Array, eps: float) -> Array:
    """Return each row over the root of the mean of its squares."""
    return np.asarray(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)), np.float32)


def _gelu(x: Array) -> Array:
    return x * (0.5 + 0.5 * _erf(x / np.float32(math.sqrt(2)))).astype(np.float32)


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.asarray(x * np.float32(0.5) * (1 + np.tanh(inner)))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _erf(x: Array) -> NDArray[np.float64]:
    """Interpolate the error function in a table of exact values; the error is below 4.1e-9, a tenth of float32's.

    Linear interpolation errs by step**2 / 8 * max |erf''| = (12 / 2**16)**2 / 8 * 0.968, and beyond 6 erf is 1 - 2e-17.
    """
    return np.interp(x, *_erf_table())


@cache
def _erf_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = np.linspace(-6, 6, 2**16 + 1)
    return points, np.array([math.erf(point) for point in points.tolist()])


def xielu(weights: Weights, name: str, x: Array) -> Array:
    """Grow by the square above zero, and towards a line below (arXiv:2411.13010), by two learned factors."""
    above, below = (np.logaddexp(np.float32(0), weights[f"{name}.act_fn.alpha_{side}"]) for side in "pn")
    positive, negative = np.maximum(x, 0), np.minimum(x, 0)
    half = np.float32(XIELU_BETA)
    return np.asarray(above * positive * positive + (half + below) * (np.expm1(negative) - negative) + half * x)


def within_groups(preferred_TE: Array, n_group: int, topk_group: int) -> Array:
    """Return the scores that experts are chosen by, with no chance for those outside the chosen groups."""
    if n_group == 1:
        return preferred_TE
    by_group_TGE = preferred_TE.reshape(len(preferred_TE), n_group, -1)
    best_TG = np.sort(by_group_TGE, axis=-1)[..., -2:].sum(-1)
    lost_TG = np.argsort(-best_TG, axis=-1, kind="stable")[:, topk_group:]
    kept_TGE = by_group_TGE.copy()
    np.put_along_axis(kept_TGE, lost_TG[..., None], -np.inf, axis=1)
    return kept_TGE.reshape(preferred_TE.shape)


def _relu2(x: Array) -> Array:
    return np.square(np.maximum(x, 0))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": _relu2,
}

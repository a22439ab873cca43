"""Activations in plain numpy: parts of the model beside it. Shapes: any."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgelm.config import XIELU_BETA
from edgelm_export.reference.weights import Array, Weights


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp(-x) is inf for a very negative x, and x / inf the right 0
        return np.asarray(x / (1 + np.exp(-x)))


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


def _relu2(x: Array) -> Array:
    return np.square(np.maximum(x, 0))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
    "relu2": _relu2,
}

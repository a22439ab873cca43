"""What every part of the reference does with the weights of a layer, in plain numpy. Shapes: T tokens, D hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgelm.config import ModelConfig

# The config's norms: whether they take the mean away, and what is added to their weight; None: they have no weight.
_NORMS = {
    "rms": (False, 0),
    "rms_offset": (False, 1),
    "rms_plain": (False, None),
    "layer": (True, 0),
    "layer_offset": (True, 1),
    "layer_no_bias": (True, 0),
    "layer_plain": (True, None),
}

Array = NDArray[np.float32]
Weights = Mapping[str, Array]


class ObservedWeights(dict[str, Array]):
    """The tensors of one layer, and a function that is shown each projection's input [T, K]: `observe(name, x)`.

    The calibration of quantizers gathers its statistics here; the name is a projection's, as "mlp.down_proj".
    """

    def __init__(self, weights: Weights, observe: Callable[[str, Array], None]) -> None:
        super().__init__(weights)
        self.observe = observe


def rows_of_sequences(lengths: Sequence[int]) -> Iterator[slice]:
    """Yield the rows of each of the sequences, of these lengths, that stand behind each other."""
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def linear(weights: Weights, name: str, x: Array) -> Array:
    """Multiply [T, K] by the weight of that name, and add its bias."""
    if isinstance(weights, ObservedWeights):
        weights.observe(name, x)
    y = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias


def norm(config: ModelConfig, weights: Weights, prefix: str, hidden_TD: Array, epsilon: float | None = None) -> Array:
    """Norm [..., D] as the model does, by the weight, if it has one, that follows `prefix`; epsilon: its own."""
    centres, offset = _NORMS[config.norm]
    if centres:
        hidden_TD = hidden_TD - hidden_TD.mean(-1, keepdims=True)
    normed_TD = over_rms(hidden_TD, epsilon or config.norm_eps)
    if offset is None:
        return normed_TD
    normed_TD = normed_TD * (weights[f"{prefix}weight"] + np.float32(offset))
    bias_D = weights.get(f"{prefix}bias")
    return normed_TD if bias_D is None else normed_TD + bias_D


def over_rms(x: Array, eps: float) -> Array:
    """Return each row over the root of the mean of its squares."""
    return np.asarray(x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)), np.float32)

"""WideStream: what goes from layer to layer of the numpy forward pass, where later layers read more than the stream.

Shapes: T tokens, D hidden, A residual streams, L layers, P features of a layer's own, K kv heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgelm.config import ModelConfig
from edgelm_export.reference.weights import Array


class WideStream:
    """What stands where in [T, W]: the residual streams [T, A * D], and behind them what later layers read beside them.

    That is each layer's own features of a token [T, L * P], and keys and values [T, K * H] of layers that others share.
    Most models have neither, and one stream: W is D.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.D, self._P = config.hidden_size, config.hidden_size_per_layer_input
        self._AD = config.altup_num_inputs * self.D
        self._shared: dict[int, int] = {}  # where they begin
        self._heads: dict[int, tuple[int, int]] = {}
        self.width = self._AD + config.per_layer_width
        for layer in config.attention_layers:
            source = config.keys_of(layer)
            if source not in (layer, *self._shared):
                self._shared[source] = self.width
                self._heads[source] = config.kv_heads(source), config.head_size(source)
                self.width += 2 * config.kv_heads(source) * config.head_size(source)

    def begun(self, hidden_TD: Array, own_TF: Array | None) -> Array:
        """Return what enters the first layer.

        hidden_TD: all streams, [T, A * D]. own_TF: the features of all layers [T, L * P], where they have some.
        """
        if self.width == self._AD:
            return hidden_TD
        wide_TW = np.zeros((len(hidden_TD), self.width), np.float32)
        wide_TW[:, : self._AD] = hidden_TD
        if own_TF is not None:
            wide_TW[:, self._AD : self._AD + own_TF.shape[1]] = own_TF
        return wide_TW

    def followed(self, wide_TW: Array, hidden_TD: Array, kept: Sequence[Array], layer: int) -> Array:
        """Return what leaves a layer; kept: its keys and values [K, T, H], which others may share."""
        if self.width == self._AD:
            return hidden_TD
        wide_TW = wide_TW.copy()
        wide_TW[:, : self._AD] = hidden_TD
        if layer in self._shared:
            start = self._shared[layer]
            for x_KTH in kept:
                end = start + x_KTH.shape[0] * x_KTH.shape[2]
                wide_TW[:, start:end] = x_KTH.swapaxes(0, 1).reshape(len(wide_TW), -1)
                start = end
        return wide_TW

    def streams(self, wide_TW: Array) -> Array:
        """Return the residual streams [T, A, D]."""
        return wide_TW[:, : self._AD].reshape(len(wide_TW), -1, self.D)

    def own(self, wide_TW: Array, layer: int) -> Array:
        """Return a layer's own features of the tokens [T, P]."""
        start = self._AD + layer * self._P
        return wide_TW[:, start : start + self._P]

    def kept(self, wide_TW: Array, layer: int) -> tuple[Array, Array]:
        """Return keys and values [K, T, H] of a layer before."""
        (K, H), start = self._heads[layer], self._shared[layer]
        both_T2KH = wide_TW[:, start : start + 2 * K * H].reshape(len(wide_TW), 2, K, H)
        return both_T2KH[:, 0].swapaxes(0, 1), both_T2KH[:, 1].swapaxes(0, 1)

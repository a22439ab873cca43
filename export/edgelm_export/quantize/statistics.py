"""Statistics: what a calibration text says about the inputs of the projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass
class InputStatistics:
    """The inputs [tokens, K] of one projection: their products, and each channel's mean and largest size.

    hessian_KK: X^T X of the inputs X as they come from quantized layers. cross_KK: S^T X with the inputs S of the
    source at the same places. lacking_NK: (R - Q)^T X, where the outputs are added to what is R in the source and Q
    behind quantized layers; None where that is not looked at.
    """

    tokens: int
    hessian_KK: Array
    cross_KK: Array
    mean_K: Array
    largest_K: Array
    lacking_NK: Array | None = None

    @classmethod
    def of(cls, source_TK: Array, inputs_TK: Array, lacking_TN: Array | None = None) -> InputStatistics:
        """Measure a text."""
        sizes = np.abs(inputs_TK)
        return cls(
            tokens=len(inputs_TK),
            hessian_KK=inputs_TK.T @ inputs_TK,
            cross_KK=source_TK.T @ inputs_TK,
            mean_K=sizes.mean(0),
            largest_K=sizes.max(0),
            lacking_NK=None if lacking_TN is None else lacking_TN.T @ inputs_TK,
        )

    def divided(self, scales_K: Array) -> InputStatistics:
        """Return the statistics of the same inputs, each channel divided by its scale."""
        products = np.outer(scales_K, scales_K)
        return InputStatistics(
            tokens=self.tokens,
            hessian_KK=self.hessian_KK / products,
            cross_KK=self.cross_KK / products,
            mean_K=self.mean_K / scales_K,
            largest_K=self.largest_K / scales_K,
        )


@dataclass
class LayerStatistics:
    """The statistics of each projection of a layer; projections of one input, such as q, k and v, share theirs."""

    of_module: dict[str, InputStatistics] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Mapping[str, Array], inputs: Mapping[str, Array]) -> LayerStatistics:
        """Measure what each projection met in the source, and behind quantized layers.

        Inputs of different lengths are passed over: tokens went to other experts.
        """
        measured: dict[int, InputStatistics] = {}
        of_module = {}
        for module, inputs_TK in inputs.items():
            if module in source and len(source[module]) == len(inputs_TK) and len(inputs_TK):
                if id(inputs_TK) not in measured:
                    measured[id(inputs_TK)] = InputStatistics.of(source[module], inputs_TK)
                of_module[module] = measured[id(inputs_TK)]
        return cls(of_module=of_module)

    def sharing(self, module: str) -> list[str]:
        """Name the projections that have their input in common with `module`, itself among them."""
        shared = self.of_module[module]
        return [other for other, statistics in self.of_module.items() if statistics is shared]

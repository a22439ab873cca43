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
    source at the same places.
    """

    tokens: int
    hessian_KK: Array
    cross_KK: Array
    mean_K: Array
    largest_K: Array

    @classmethod
    def of(cls, source_TK: Array, inputs_TK: Array) -> InputStatistics:
        """Measure one sequence."""
        sizes = np.abs(inputs_TK)
        return cls(
            tokens=len(inputs_TK),
            hessian_KK=inputs_TK.T @ inputs_TK,
            cross_KK=source_TK.T @ inputs_TK,
            mean_K=sizes.mean(0),
            largest_K=sizes.max(0),
        )

    def add(self, other: InputStatistics) -> None:
        """Take in another sequence."""
        tokens = self.tokens + other.tokens
        self.mean_K = (self.mean_K * self.tokens + other.mean_K * other.tokens) / np.float32(tokens)
        self.largest_K = np.maximum(self.largest_K, other.largest_K)
        self.hessian_KK += other.hessian_KK
        self.cross_KK += other.cross_KK
        self.tokens = tokens

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

    def add(self, source: Mapping[str, Array], inputs: Mapping[str, Array]) -> None:
        """Take in one sequence: what each projection met in the source, and behind quantized layers.

        Inputs of different lengths are passed over: tokens went to other experts.
        """
        measured: dict[int, InputStatistics] = {}
        for module, inputs_TK in inputs.items():
            if module not in source or len(source[module]) != len(inputs_TK) or not len(inputs_TK):
                continue
            first = id(inputs_TK) not in measured
            if first:
                measured[id(inputs_TK)] = InputStatistics.of(source[module], inputs_TK)
            if module not in self.of_module:
                self.of_module[module] = measured[id(inputs_TK)]
            elif first:
                self.of_module[module].add(measured[id(inputs_TK)])

    def sharing(self, module: str) -> list[str]:
        """Name the projections that have their input in common with `module`, itself among them."""
        shared = self.of_module[module]
        return [other for other, statistics in self.of_module.items() if statistics is shared]

"""Statistics: what a calibration text says about the inputs of the projections."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm_export.reference.weights import Array


@dataclass
class InputStatistics:
    """The inputs [tokens, K] of one projection, as their products.

    hessian_KK: X^T X of the inputs X as they come from quantized layers. cross_KK: S^T X with the inputs S of the
    source at the same places. lacking_NK: (R - Q)^T X, where the outputs are added to what is R in the source and Q
    behind quantized layers; None where that is not looked at.
    """

    hessian_KK: Array
    cross_KK: Array
    lacking_NK: Array | None = None

    @classmethod
    def of(cls, source_TK: Array, inputs_TK: Array, lacking_TN: Array | None = None) -> InputStatistics:
        """Measure a text."""
        return cls(
            hessian_KK=inputs_TK.T @ inputs_TK,
            cross_KK=source_TK.T @ inputs_TK,
            lacking_NK=None if lacking_TN is None else lacking_TN.T @ inputs_TK,
        )

"""Multipliers: what a layer's projections are multiplied by, behind their biases."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from edgelm.errors import ConfigError
from edgelm.number_bounds import is_positive

_LEAST, _MOST = 2.0**-64, 2.0**64  # products of a few are still numbers of float32, and so is what they divide


@dataclass(frozen=True, kw_only=True)
class Multipliers:
    """Fixed factors of what projections give, by which a model keeps its settings of training at every width.

    Those of Falcon-H1 (arXiv:2507.22448), after the maximal update parametrization (arXiv:2203.03466).

    attention_out: of attention's last projection. ssm_z, ssm_x, ssm_b, ssm_c, ssm_dt: of the parts of the first
    projection of Mamba 2, before its convolution; ssm_out: of its last one. mlp_gate, mlp_down: of a feed-forward's
    gate, before the activation, and of its last projection.

    Raises:
        ConfigError: one is no number above zero, or far from one.
    """

    attention_out: float = 1.0
    ssm_z: float = 1.0
    ssm_x: float = 1.0
    ssm_b: float = 1.0
    ssm_c: float = 1.0
    ssm_dt: float = 1.0
    ssm_out: float = 1.0
    mlp_gate: float = 1.0
    mlp_down: float = 1.0

    @property
    def ssm_xbc(self) -> tuple[float, float, float]:
        """Those of what goes through the convolution of Mamba 2, one part after the other."""
        return self.ssm_x, self.ssm_b, self.ssm_c

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (is_positive(value) and _LEAST <= value <= _MOST):
                raise ConfigError(
                    f"The multiplier {field.name} is {value!r:.60}; it must be a number from 2 ** -64 to 2 ** 64."
                )

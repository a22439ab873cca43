"""Numbers of the OCP Microscaling Formats (MX) 1.0: values of four bits (E2M1), and scales of eight (E8M0)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The values of E2M1, each twice as large: whole numbers.
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def half_of_power(exponents: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return half of what E8M0 says, 2 ** (exponent - 127), in float32 of its shape: the scale of doubled values."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)

"""fp8 e4m3 (OCP 8-bit floating point, the `fn` kind): 4 bits of exponent, 3 of mantissa, no infinity.

Steps grow with the value: 2^-9 up to 2^-6, 32 from 256 to 448, the largest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

LARGEST = 448.0
_MANTISSA_BITS = 3
_LEAST_EXPONENT = -6  # of a normal number; below it steps stay as they are


def nearest(scaled: Array) -> Array:
    """Values in units of the scale -> the nearest e4m3 numbers; halves go to the even one, what is outside
    to the last."""
    inside = np.clip(scaled, -LARGEST, LARGEST).astype(np.float32, copy=False)
    _, exponent = np.frexp(inside)  # inside is m * 2^exponent, m from 0.5 up to 1
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, _LEAST_EXPONENT) - _MANTISSA_BITS)
    return (np.rint(inside / step) * step).astype(np.float32, copy=False)

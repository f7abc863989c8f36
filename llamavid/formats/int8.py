"""int8: whole numbers from -127 to 127. Symmetric, since TensorRT takes no zero point; -128 is left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

LARGEST = 127.0


def nearest(scaled: Array) -> Array:
    """Values in units of the scale -> the nearest levels; halves go to the even one, what is outside to the
    last."""
    return np.rint(np.clip(scaled, -LARGEST, LARGEST)).astype(np.float32, copy=False)

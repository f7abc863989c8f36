"""Numbers as a graph's boundary holds them. bfloat16, which NumPy has not, is its bits in uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llamavid.contract import DType

Array = npt.NDArray[Any]


def as_elements(values: Array, dtype: DType) -> Array:
    """Floats, or what is of that type already, as the elements of a tensor."""
    if dtype is not DType.BFLOAT16 or values.dtype == np.uint16:
        return values.astype(dtype.numpy, copy=False)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # To the nearest, ties to even. A NaN keeps a bit of its fraction, which cutting off might lose.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def as_floats(elements: Array, dtype: DType) -> Array:
    """The other way: a float array of values."""
    if dtype is not DType.BFLOAT16:
        return elements
    return (elements.astype(np.uint32) << 16).view(np.float32)


def as_float32(elements: Array, dtype: DType) -> npt.NDArray[np.float32]:
    """The same, whatever the type."""
    return as_floats(elements, dtype).astype(np.float32, copy=False)
